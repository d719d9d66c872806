"""Fail where a test run was green because it ran (almost) nothing: count_tests.py REPORT.xml LEAST"""

import sys
import xml.etree.ElementTree as ElementTree

report, least = sys.argv[1], int(sys.argv[2])
suites = list(ElementTree.parse(report).getroot().iter("testsuite"))
run = sum(int(suite.get("tests", 0)) - int(suite.get("skipped", 0)) for suite in suites)
print(f"{run} tests ran, at least {least} must")
sys.exit(run < least)
