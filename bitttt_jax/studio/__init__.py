"""The studio: a web page on this computer that starts, shows and stops runs.

Its process only reads files and starts other processes; it never imports jax. A run goes on
whether or not the page, or the studio, is there.
"""
