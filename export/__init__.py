"""Exporters: model folders as published in, checked folders of ONNX graphs or TensorRT engines out.

Each module beside this one is one exporter, with one public function. An export has three steps:

1. ``sources/`` reads a folder: settings, tokenizer and weights, checked, and hashed together.
2. ``graphs/`` writes the ONNX graphs node by node, and streams the weights into them. Models
   without a graph of ours go through optimum instead, see ``optimum/``.
3. ``checks/`` checks the graphs against NumPy, and compares the new folder with the source as
   transformers runs it, if that is installed. A draft that differs too much never gets the name
   that the user chose, and it has no manifest before it is checked: nothing can load it.

The graphs of ours need neither torch nor transformers. Weights pass through memory in slices.

`specs` holds the facts that these steps share: supported models, precisions and tolerances. The
names of files and tensors are in `granalign_fast.models.graph_contract`, as the runtime reads them.
"""
