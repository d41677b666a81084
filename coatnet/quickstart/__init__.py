"""The whole way on one machine, by the commands that a user would type. Knows no package's insides."""
