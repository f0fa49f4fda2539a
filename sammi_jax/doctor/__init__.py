"""What this installation can do: versions, devices, and a self-test (``sammi doctor``)."""
