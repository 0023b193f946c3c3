"""Run by test_hosts.py as one of two processes: gets on for ever, or until something happens to it or the other."""

import sys
import time

from launch.processes import hosts
from launch.training import sharding


def main():
    address, process, failing = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "fail"
    sharding.initialize(address, 2, process)
    with hosts.watched(60.0, lost_after=2.0, interval=0.2) as advance:
        print("watching", flush=True)
        for _ in range(3000):
            advance()
            time.sleep(0.02)
            if failing and process == 1:
                raise ArithmeticError("was not to be")


if __name__ == "__main__":
    main()
