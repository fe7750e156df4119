"""QEMU's qtest protocol: a server that our machine answers, and a client that drives QEMU."""
