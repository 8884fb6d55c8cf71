#!/usr/bin/env python3
"""Puts wscript_fragment and include/smbdirect.h into the patch that adds them.

The Samba patches carry a copy of both files. After one of them has changed, this rewrites the
patch; scripts/samba-build.sh refuses to build as long as they differ.

usage: scripts/samba-sync.py [--check]
"""

import hashlib
import re
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
COPIES = {
    "lib/smbdirect/wscript": PROJECT / "wscript_fragment",
    "lib/smbdirect/smbdirect.h": PROJECT / "include" / "smbdirect.h",
}


def new_file_diff(path, content):
    """The diff that adds a file."""
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    lines = content.decode().splitlines()
    if not content.endswith(b"\n"):
        sys.exit(f"{path}: no newline at the end of the file")
    head = [
        f"diff --git a/{path} b/{path}",
        "new file mode 100644",
        f"index 000000000000..{blob[:12]}",
        "--- /dev/null",
        f"+++ b/{path}",
        f"@@ -0,0 +1,{len(lines)} @@",
    ]
    return "\n".join(head + ["+" + line for line in lines]) + "\n", len(lines)


def fix_diffstat(text, path, count):
    """The line of the file and the summary, as far as numbers go."""
    text = re.sub(
        rf"^( {re.escape(path)} +\| +)\d+( \+*)$", rf"\g<1>{count}\g<2>", text, count=1, flags=re.M
    )
    return text


def main():
    check = sys.argv[1:] == ["--check"]
    if sys.argv[1:] and not check:
        sys.exit(__doc__)
    status = 0
    for path, source in COPIES.items():
        diff, count = new_file_diff(path, source.read_bytes())
        pattern = re.compile(
            rf"^diff --git a/{re.escape(path)} b/{re.escape(path)}\nnew file.*?"
            r"(?=^diff --git |^-- \n|\Z)",
            re.M | re.S,
        )
        patches = [p for p in sorted((PROJECT / "samba-patches").glob("*/*.patch"))
                   if pattern.search(p.read_text())]
        if not patches:
            sys.exit(f"no patch adds {path}")
        for patch in patches:
            old = patch.read_text()
            body = pattern.search(old).group(0)
            if body.split("@@", 1)[1] == diff.split("@@", 1)[1]:
                continue
            print(f"{patch.relative_to(PROJECT)}: {path} differs from {source.name}")
            if check:
                status = 1
                continue
            added = re.compile(r"^( \d+ files? changed, )(\d+)( insertions?)", re.M)
            was = int(re.search(r"@@ -0,0 \+1,(\d+) @@", body).group(1))
            new = pattern.sub(lambda _: diff, old, count=1)
            new = fix_diffstat(new, path, count)
            new = added.sub(lambda m: f"{m[1]}{int(m[2]) + count - was}{m[3]}", new, count=1)
            patch.write_text(new)
    return status


if __name__ == "__main__":
    sys.exit(main())
