//! Files in, files out, and modules in between: one binary, because each links burn.

mod support;

mod pth;

mod pth_write;

mod legacy;

mod unreadable;

mod shards;

mod parity;

mod safetensors;

mod hostile;

mod robustness;

mod bind;

mod finite;

mod module_tensors;
