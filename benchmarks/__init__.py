"""Measurements of Plait against its peers; every number in the documentation is printed here."""
