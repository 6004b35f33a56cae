# It needs packages that the tests do without.
collect_ignore = ["make_reference_cases.py"]
