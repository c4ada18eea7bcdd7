"""The documented command for the Tucker analysis: `main.py --mode tucker` under its own name.

    python compression/run_tucker_analysis.py --sequence_length 512 --embedding_rank 32
    python -m compression.run_tucker_analysis --sequence_length 512 --embedding_rank 32

Starts main.py in a process of its own: run as a script, this folder would stand first on the
module path, where the toolkit's own packages are not.
"""

import subprocess
import sys
from pathlib import Path

MAIN = Path(__file__).resolve().parent.parent / "main.py"


def main() -> int:
    command = [sys.executable, str(MAIN), "--mode", "tucker", *sys.argv[1:]]
    child = subprocess.Popen(command)
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:  # the child has it too, and says so
            continue


if __name__ == "__main__":
    sys.exit(main())
