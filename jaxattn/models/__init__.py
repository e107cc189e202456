"""Whole models made of `jaxattn.nn`."""
