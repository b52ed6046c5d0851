"""Each fence is taken away in a copy of the code, and the test that is named for it must go red: `make mutations`."""
