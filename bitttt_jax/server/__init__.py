"""A server of one model: OpenAI's API, and the endpoints by which the studio's playground talks.

One thread runs the engine (`worker`), one the event loop; no other touches either's things.
"""
