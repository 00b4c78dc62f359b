"""Convert a report of ``pip install --report`` on standard input to hash-checked requirements.

The report lists every package that pip would install, with the digest of its one file.
"""

import json
import sys

lines = ["# made by make lock, for Linux x86-64 and CPython 3.11; make install-locked installs it"]
for item in sorted(json.load(sys.stdin)["install"], key=lambda i: i["metadata"]["name"].lower()):
    if "dir_info" in item["download_info"]:
        continue  # this project
    digest = item["download_info"]["archive_info"]["hashes"]["sha256"]
    metadata = item["metadata"]
    lines.append(f"{metadata['name']}=={metadata['version']} --hash=sha256:{digest}")
print("\n".join(lines))
