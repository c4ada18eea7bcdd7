"""The documented command for the Tucker analysis: `main.py --mode tucker` under its own name.

    python compression/run_tucker_analysis.py --sequence_length 512 --embedding_rank 32
    python -m compression.run_tucker_analysis --sequence_length 512 --embedding_rank 32

Becomes main.py: run as a script, this folder would stand first on the module path, where the
toolkit's own packages are not.
"""

import os
import subprocess
import sys
from pathlib import Path

MAIN = Path(__file__).resolve().parent.parent / "main.py"


def main() -> int:
    command = [sys.executable, str(MAIN), "--mode", "tucker", *sys.argv[1:]]
    if sys.platform != "win32":
        os.execv(sys.executable, command)  # the same process: whoever ends it ends the run
    child = subprocess.Popen(command)  # Windows knows no such thing
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:  # the child has it too, and says so
            continue


if __name__ == "__main__":
    sys.exit(main())
