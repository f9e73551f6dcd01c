"""Serving a model over HTTP, in the words of OpenAI's API."""
