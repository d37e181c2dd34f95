"""What a model version computes, as a process serves it: by PyTorch or OpenVINO, on a CPU or a GPU."""
