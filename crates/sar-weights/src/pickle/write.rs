//! Writing the pickle of a dictionary of tensors, in protocol 2 as torch does.

use super::op;

/// The pickle of `{"ROOT": {"NAME": tensor, ..}}`, tensor by tensor.
pub(crate) struct Writer {
    bytes: Vec<u8>,
    n_nested: usize,
}

impl Writer {
    /// Opens nested dictionaries along a dotted path; none where it is empty.
    pub(crate) fn new(root: &str) -> Self {
        let mut writer = Self { bytes: vec![op::PROTO, 2, op::EMPTY_DICT], n_nested: 0 };
        for part in root.split('.').filter(|part| !part.is_empty()) {
            writer.text(part);
            writer.bytes.push(op::EMPTY_DICT);
            writer.n_nested += 1;
        }
        writer.bytes.push(op::MARK);
        writer
    }

    /// Adds a contiguous tensor, which is all of the storage `key`.
    pub(crate) fn tensor(&mut self, name: &str, storage: &str, key: usize, shape: &[usize]) {
        self.text(name);
        self.global("torch._utils", "_rebuild_tensor_v2");
        self.bytes.push(op::MARK);

        self.bytes.push(op::MARK);
        self.text("storage");
        self.global("torch", storage);
        self.text(&key.to_string());
        self.text("cpu");
        self.int(shape.iter().product());
        self.bytes.extend([op::TUPLE, op::BINPERSID]);

        self.int(0);
        self.ints(shape.iter().copied());
        // The strides of nothing say nothing, and might overflow.
        let is_empty = shape.contains(&0);
        let stride = |d: usize| if is_empty { 1 } else { shape[d + 1..].iter().product() };
        self.ints((0..shape.len()).map(stride));
        // No gradient, no backward hooks.
        self.bytes.push(op::NEWFALSE);
        self.global("collections", "OrderedDict");
        self.bytes.extend([op::EMPTY_TUPLE, op::REDUCE]);
        self.bytes.extend([op::TUPLE, op::REDUCE]);
    }

    /// Closes all dictionaries.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.bytes.push(op::SETITEMS);
        self.bytes.extend(std::iter::repeat_n(op::SETITEM, self.n_nested));
        self.bytes.push(op::STOP);
        self.bytes
    }

    fn text(&mut self, text: &str) {
        let length = u32::try_from(text.len()).expect("names are short");
        self.bytes.push(op::BINUNICODE);
        self.bytes.extend(length.to_le_bytes());
        self.bytes.extend(text.as_bytes());
    }

    fn global(&mut self, module: &str, name: &str) {
        self.bytes.push(op::GLOBAL);
        self.bytes.extend(format!("{module}\n{name}\n").into_bytes());
    }

    fn ints(&mut self, ints: impl Iterator<Item = usize>) {
        self.bytes.push(op::MARK);
        ints.for_each(|int| self.int(int));
        self.bytes.push(op::TUPLE);
    }

    fn int(&mut self, int: usize) {
        match int {
            0..=0xff => self.bytes.extend([op::BININT1, int as u8]),
            0x100..=0xffff => {
                self.bytes.push(op::BININT2);
                self.bytes.extend((int as u16).to_le_bytes());
            }
            0x1_0000..=0x7fff_ffff => {
                self.bytes.push(op::BININT);
                self.bytes.extend((int as u32).to_le_bytes());
            }
            _ => {
                self.bytes.extend([op::LONG1, 8]);
                self.bytes.extend((int as u64).to_le_bytes());
            }
        }
    }
}
