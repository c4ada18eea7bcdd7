"""Tidy tables in, figures out: never torch, never statistics; one style and one door to save."""
