"""Parts of benches/reliability.py."""
