"""The special tokens of DeepSeek's tokenizers, by short name."""

# Short names to the strings of DeepSeek's published tokenizers. The bars are
# fullwidth (U+FF5C) and the spaces are U+2581, except in the last three.
STRINGS = {
  "bos": "<｜begin▁of▁sentence｜>",
  "eos": "<｜end▁of▁sentence｜>",
  "pad": "<｜▁pad▁｜>",
  "fim_hole": "<｜fim▁hole｜>",
  "fim_begin": "<｜fim▁begin｜>",
  "fim_end": "<｜fim▁end｜>",
  "user": "<｜User｜>",
  "assistant": "<｜Assistant｜>",
  "eot": "<|EOT|>",
  "think": "<think>",
  "/think": "</think>",
}
