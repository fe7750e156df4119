"""The session that docs/qtest.md shows comes out as shown."""

import re
import shlex
import subprocess
from pathlib import Path

from qtest_peer import SERVER, TIMEOUT

DOCUMENT = Path(__file__).parents[2] / "docs" / "qtest.md"


def test_qtest_document_session():
    block = re.search(r"^    \$ iommu-emu qtest (.*)\n((?:    .*\n)+)", DOCUMENT.read_text(), re.M)
    arguments, session = block[1], [line.strip() for line in block[2].splitlines()]
    commands, replies = session[::2], session[1::2]
    done = subprocess.run(
        [*SERVER, *shlex.split(arguments)],
        input="\n".join(commands) + "\n",
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert (done.stdout.splitlines(), done.stderr) == (replies, "")
