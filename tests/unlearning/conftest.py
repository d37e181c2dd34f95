"""One thread a process, as all training runs here; threaded passes of torch 2.14 crashed on an AMD EPYC."""

import torch

torch.set_num_threads(1)
