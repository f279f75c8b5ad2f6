"""Decisions about series: what each one is, and which reference a DWI gets. Pure functions over facts."""
