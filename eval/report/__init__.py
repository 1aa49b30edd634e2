"""Tables, plots and reports out of results."""
