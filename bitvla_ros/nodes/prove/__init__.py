"""Faults injected into a real graph, and promises kept by it. The verb is prove/verb.py."""
