"""Composes configs, checks them without torch, and instantiates their classes."""
