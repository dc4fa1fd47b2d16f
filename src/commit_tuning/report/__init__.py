"""Reports: the page, its tables and figures."""
