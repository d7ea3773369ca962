"""Can TrustDD be installed for the Python that runs this? Prints what pip is to be told in addition.

`make setup` asks it first. It is written so that old versions of Python understand it, too.
"""
import sys

OLDEST, NEWEST = (3, 10), (3, 14)
PINS = "-c constraints.txt"


def advice(version):
    "What is said of a version of Python, and what pip is told; None if it cannot be."
    said = "Python %d.%d" % version
    if version < OLDEST:
        return said + " is too old: name 3.10 or newer, such as make setup PYTHON=python3.12", None
    if version > NEWEST:
        return said + " is untried here (3.10 to 3.14 are tried): going on with the newest packages", ""
    return "", PINS


if __name__ == "__main__":
    message, words = advice(tuple(sys.version_info[:2]))
    if message: sys.stderr.write(message + "\n")
    if words is None: sys.exit(1)
    print(words)
