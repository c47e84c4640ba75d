"""What ``train`` returns: distilled data sets, one module a form."""
