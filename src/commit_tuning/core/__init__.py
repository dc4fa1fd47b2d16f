"""The method: drift, balance, control, regulariser. Knows torch and the standard library only."""
