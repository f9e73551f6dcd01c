"""The inside of the sandbox: run as a script by `sandbox.py`, never imported.

  python -I -S jail.py STATUS_FD    (and a line of JSON on standard input)

Makes namespaces of its own (mounts, processes, network, IPC, host name, users),
a root that holds the Python installation read-only, an empty /tmp and nothing
else, an unprivileged user without capabilities, and limits; then runs the
program in it. Writes one line to STATUS_FD when all of that is in place, and
one when the program has ended. Everything ends with this process, or with its
parent.

Standard library only, and Linux only.
"""

import ctypes
import json
import os
import resource
import signal
import sys

_LIBC = ctypes.CDLL(None, use_errno=True)

_CLONE_NEWNS = 0x00020000
_CLONE_NEWCGROUP = 0x02000000
_CLONE_NEWUTS = 0x04000000
_CLONE_NEWIPC = 0x08000000
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWPID = 0x20000000
_CLONE_NEWNET = 0x40000000
_SEPARATE = (
  _CLONE_NEWNS
  | _CLONE_NEWCGROUP
  | _CLONE_NEWUTS
  | _CLONE_NEWIPC
  | _CLONE_NEWPID
  | _CLONE_NEWNET
)

_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 1, 2, 4, 8
_MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 32, 4096, 16384, 1 << 18
_MNT_DETACH = 2

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_CAPBSET_DROP = 1, 4, 24
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECUREBITS = 38, 28
# No capability comes back to user 0 by executing or changing users, for good.
_SECURE_BITS = 0b101111
_CAPABILITY_VERSION = 0x20080522
_CAPABILITIES = 64

_NOBODY = 65534
_NEW_ROOT = "/tmp"  # covered by a file system of our own at once
_SYSTEM = ("/usr", "/bin", "/lib", "/lib32", "/lib64", "/libx32")


def _call(function, *arguments) -> None:
  """Calls libc, or raises OSError with the function's name."""
  if getattr(_LIBC, function)(*arguments) != 0:
    number = ctypes.get_errno()
    raise OSError(number, f"{function}: {os.strerror(number)}")


def _mount(source, target, kind, flags=0, data=None) -> None:
  encoded = (None if x is None else x.encode() for x in (source, target, kind))
  data = None if data is None else data.encode()
  _call("mount", *encoded, ctypes.c_ulong(flags), data)


def _write(path: str, text: str) -> None:
  with open(path, "w", encoding="ascii") as file:
    file.write(text)


def _own_users(outside: int, group: int, inside: int) -> None:
  """A user namespace in which `outside` is called `inside`."""
  _call("unshare", _CLONE_NEWUSER)
  _write("/proc/self/setgroups", "deny")
  _write("/proc/self/uid_map", f"{inside} {outside} 1")
  _write("/proc/self/gid_map", f"{inside} {group} 1")


def _build_root(settings) -> None:
  """The file system of the program, and nothing behind it."""
  _mount(None, "/", None, _MS_REC | _MS_PRIVATE)
  size = f"size={settings['disk_bytes']},nr_inodes=2048,mode=755"
  prefix, program = settings["prefix"], settings["program"]
  found = [path for path in _SYSTEM if os.path.lexists(path)]
  links = {path: os.readlink(path) for path in found if os.path.islink(path)}
  # The old root stays reachable under these until `pivot_root`.
  binds = [path for path in (*found, prefix) if path not in links]
  handles = {p: os.open(p, os.O_PATH | os.O_DIRECTORY) for p in binds}
  devices = {
    f"/dev/{name}": os.open(f"/dev/{name}", os.O_PATH)
    for name in ("null", "zero", "urandom")
  }
  _mount("root", _NEW_ROOT, "tmpfs", _MS_NOSUID, size)
  os.chdir(_NEW_ROOT)
  for path, target in links.items():
    os.symlink(target, path.lstrip("/"))
  for path, handle in handles.items():
    os.makedirs(path.lstrip("/"), exist_ok=True)
    _bind(handle, path.lstrip("/"), _MS_NODEV)
  os.makedirs("dev")
  for path, handle in devices.items():
    os.close(os.open(path.lstrip("/"), os.O_CREAT | os.O_WRONLY))
    _bind(handle, path.lstrip("/"), 0)
  for folder in ("proc", "tmp", "old"):
    os.makedirs(folder)
  _mount("proc", "proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
  flags = _MS_NOSUID | _MS_NODEV
  _mount("tmp", "tmp", "tmpfs", flags, size.replace("755", "1777"))
  for name, text in (("main.py", program), ("input", settings["stdin"])):
    with open(f"tmp/{name}", "w", encoding="utf-8", newline="") as file:
      file.write(text)
    os.chmod(f"tmp/{name}", 0o444)
  number = _LIBC.syscall(_pivot_root(), b".", b"old")
  if number != 0:
    raise OSError(ctypes.get_errno(), "pivot_root")
  os.chdir("/")
  _call("umount2", b"/old", _MNT_DETACH)
  os.rmdir("/old")
  for handle in (*handles.values(), *devices.values()):
    os.close(handle)
  flags = _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID
  _mount(None, "/", None, flags)


def _bind(handle: int, target: str, flags: int) -> None:
  _mount(f"/proc/self/fd/{handle}", target, None, _MS_BIND | _MS_REC)
  flags |= _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID
  try:
    _mount(None, target, None, flags)
  except PermissionError:
    # What is mounted `nodev` or `noexec` outside must say so again.
    kept = os.statvfs(target).f_flag & (_MS_NODEV | _MS_NOEXEC)
    kept |= _relatime(target)
    _mount(None, target, None, flags | kept)


def _relatime(target: str) -> int:
  noatime, nodiratime, relatime = 1024, 2048, 4096
  flags = os.statvfs(target).f_flag
  kept = 1 << 10 if flags & noatime else 0
  kept |= 1 << 11 if flags & nodiratime else 0
  return kept | (1 << 21 if flags & relatime else 0)


def _pivot_root() -> int:
  return {"x86_64": 155, "aarch64": 41, "riscv64": 41}[os.uname().machine]


def _become_nobody(is_root: bool) -> None:
  """Another user, in a namespace that has no further ones; no capability."""
  if is_root:
    os.setgroups([])
    os.setresgid(_NOBODY, _NOBODY, _NOBODY)
    os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    # Else /proc/self belongs to the user that this process is no longer.
    _call("prctl", _PR_SET_DUMPABLE, 1, 0, 0, 0)
    _own_users(_NOBODY, _NOBODY, _NOBODY)
  else:
    _own_users(0, 0, _NOBODY)
  for kind in ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup"):
    try:
      _write(f"/proc/sys/user/max_{kind}_namespaces", "0")
    except OSError:
      pass  # a read-only /proc/sys; no capability is left below all the same


def _drop_capabilities() -> None:
  # The program, the same user, shall not debug what watches over it.
  _call("prctl", _PR_SET_DUMPABLE, 0, 0, 0, 0)
  _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
  _call("prctl", _PR_SET_SECUREBITS, _SECURE_BITS, 0, 0, 0)
  for number in range(_CAPABILITIES):
    _LIBC.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)  # fails past the last one
  header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
  _call("capset", header, (ctypes.c_uint32 * 6)())


def _limit(settings) -> None:
  for name, value in settings["limits"].items():
    number = getattr(resource, f"RLIMIT_{name}")
    resource.setrlimit(number, (value, value))


def _first_process(settings, status: int, is_root: bool) -> None:
  """Process 1 of the namespace: builds it, runs the program, reaps."""
  _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
  _build_root(settings)
  given = os.open("/tmp/input", os.O_RDONLY)
  os.unlink("/tmp/input")
  os.dup2(given, 0)
  os.close(given)
  _become_nobody(is_root)
  os.chdir("/tmp")
  program = os.fork()
  if program == 0:
    _drop_capabilities()
    _limit(settings)
    # Its end is the end of `status` here: nobody reads further than "ready".
    os.write(status, b"ready\n")
    os.execve(settings["python"], settings["command"], settings["environment"])
  _drop_capabilities()
  while True:
    pid, how = os.wait()
    if pid == program:
      code = os.waitstatus_to_exitcode(how)
      os.write(status, f"ended {code}\n".encode())
      os._exit(0)


def main() -> None:
  """Runs the program of the settings."""
  status, settings = int(sys.argv[1]), json.loads(sys.stdin.buffer.readline())
  os.set_inheritable(status, False)
  _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
  is_root = os.geteuid() == 0
  try:
    if not is_root:
      _own_users(os.geteuid(), os.getegid(), 0)
    _call("unshare", _SEPARATE)
    first = os.fork()
    if first == 0:
      try:
        _first_process(settings, status, is_root)
      except OSError as error:
        os.write(status, f"failed {error}\n".encode())
      os._exit(1)
    # Waiting for process 1 is waiting for all: the others end before it does.
    signal.signal(signal.SIGTERM, lambda *_: os.kill(first, signal.SIGKILL))
    os.waitpid(first, 0)
  except OSError as error:
    os.write(status, f"failed {error}\n".encode())
    sys.exit(1)


if __name__ == "__main__":
  main()
