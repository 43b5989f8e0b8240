//! A restricted interpreter of the pickles that torch writes (protocols 2 to 5).
//!
//! It builds dictionaries, lists, tuples, strings, integers and descriptions of tensors. Every
//! other value is [`Value::Opaque`]: nothing is looked up, called or imported. All containers live
//! in arenas and values are indices into them, so that neither deep nesting nor a container that
//! holds itself costs more than its opcodes.

use std::collections::HashMap;

use burn::tensor::{BoolStore, DType};

/// The most opcodes of one pickle; a checkpoint of torch takes about 25 per tensor.
const MAX_OPCODES: usize = 1 << 22;

/// The opcodes that torch's and Python's picklers write in protocols 2 to 5, named as in Python.
mod op {
    pub(super) const MARK: u8 = b'(';
    pub(super) const STOP: u8 = b'.';
    pub(super) const POP: u8 = b'0';
    pub(super) const POP_MARK: u8 = b'1';
    pub(super) const DUP: u8 = b'2';
    pub(super) const BINFLOAT: u8 = b'G';
    pub(super) const BININT: u8 = b'J';
    pub(super) const BININT1: u8 = b'K';
    pub(super) const BININT2: u8 = b'M';
    pub(super) const NONE: u8 = b'N';
    pub(super) const BINPERSID: u8 = b'Q';
    pub(super) const REDUCE: u8 = b'R';
    pub(super) const BINSTRING: u8 = b'T';
    pub(super) const SHORT_BINSTRING: u8 = b'U';
    pub(super) const BINUNICODE: u8 = b'X';
    pub(super) const BINBYTES: u8 = b'B';
    pub(super) const SHORT_BINBYTES: u8 = b'C';
    pub(super) const EMPTY_LIST: u8 = b']';
    pub(super) const APPEND: u8 = b'a';
    pub(super) const BUILD: u8 = b'b';
    pub(super) const GLOBAL: u8 = b'c';
    pub(super) const DICT: u8 = b'd';
    pub(super) const APPENDS: u8 = b'e';
    pub(super) const BINGET: u8 = b'h';
    pub(super) const LONG_BINGET: u8 = b'j';
    pub(super) const LIST: u8 = b'l';
    pub(super) const BINPUT: u8 = b'q';
    pub(super) const LONG_BINPUT: u8 = b'r';
    pub(super) const SETITEM: u8 = b's';
    pub(super) const TUPLE: u8 = b't';
    pub(super) const EMPTY_TUPLE: u8 = b')';
    pub(super) const SETITEMS: u8 = b'u';
    pub(super) const EMPTY_DICT: u8 = b'}';
    pub(super) const PROTO: u8 = 0x80;
    pub(super) const NEWOBJ: u8 = 0x81;
    pub(super) const TUPLE1: u8 = 0x85;
    pub(super) const TUPLE2: u8 = 0x86;
    pub(super) const TUPLE3: u8 = 0x87;
    pub(super) const NEWTRUE: u8 = 0x88;
    pub(super) const NEWFALSE: u8 = 0x89;
    pub(super) const LONG1: u8 = 0x8a;
    pub(super) const LONG4: u8 = 0x8b;
    pub(super) const SHORT_BINUNICODE: u8 = 0x8c;
    pub(super) const BINUNICODE8: u8 = 0x8d;
    pub(super) const BINBYTES8: u8 = 0x8e;
    pub(super) const EMPTY_SET: u8 = 0x8f;
    pub(super) const ADDITEMS: u8 = 0x90;
    pub(super) const FROZENSET: u8 = 0x91;
    pub(super) const NEWOBJ_EX: u8 = 0x92;
    pub(super) const STACK_GLOBAL: u8 = 0x93;
    pub(super) const MEMOIZE: u8 = 0x94;
    pub(super) const FRAME: u8 = 0x95;
    pub(super) const BYTEARRAY8: u8 = 0x96;
}

/// A value of the pickle. Containers are indices into the [`Heap`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Value<'a> {
    /// Anything that neither is nor holds a tensor, or that would have to be called to find out.
    Opaque,
    Int(i64),
    Str(&'a str),
    /// A tuple or a list.
    Sequence(usize),
    Dict(usize),
    Global(Global),
    Storage(usize),
    Tensor(usize),
}

/// The globals that have a meaning; all others are opaque.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Storage(DType),
}

/// A storage: the entry `data/KEY` of the zip file.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Storage<'a> {
    pub(crate) key: &'a str,
    pub(crate) dtype: DType,
    pub(crate) len: i64,
}

/// The arguments of `torch._utils._rebuild_tensor_v2`; sizes and strides are sequences.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Rebuilt {
    pub(crate) storage: usize,
    pub(crate) offset: i64,
    pub(crate) sizes: usize,
    pub(crate) strides: usize,
}

/// What the containers of a pickle hold.
#[derive(Debug, Default)]
pub(crate) struct Heap<'a> {
    pub(crate) sequences: Vec<Vec<Value<'a>>>,
    pub(crate) dicts: Vec<Vec<(Value<'a>, Value<'a>)>>,
    pub(crate) storages: Vec<Storage<'a>>,
    pub(crate) tensors: Vec<Rebuilt>,
}

/// Runs a pickle and returns what it leaves on the stack.
///
/// # Errors
/// Where in the pickle, and what is wrong there.
pub(crate) fn run(pickle: &[u8]) -> Result<(Heap<'_>, Value<'_>), String> {
    let mut machine = Machine { input: pickle, ..Machine::default() };
    let root = machine.run().map_err(|what| format!("byte {}: {what}", machine.opcode_at))?;
    Ok((machine.heap, root))
}

#[derive(Default)]
struct Machine<'a> {
    input: &'a [u8],
    at: usize,
    opcode_at: usize,
    stack: Vec<Value<'a>>,
    /// For each open mark, the length of the stack below it.
    marks: Vec<usize>,
    memo: HashMap<u32, Value<'a>>,
    heap: Heap<'a>,
}

impl<'a> Machine<'a> {
    fn run(&mut self) -> Result<Value<'a>, String> {
        match self.take(2)? {
            [op::PROTO, 2..=5] => {}
            _ => return Err("no pickle of protocol 2 to 5 begins here".into()),
        }
        for _ in 0..MAX_OPCODES {
            self.opcode_at = self.at;
            match self.byte()? {
                op::STOP => return self.pop(),
                opcode => self.step(opcode)?,
            }
        }
        Err(format!("more than {MAX_OPCODES} opcodes"))
    }

    fn step(&mut self, opcode: u8) -> Result<(), String> {
        let value = match opcode {
            op::NONE | op::NEWTRUE | op::NEWFALSE | op::EMPTY_SET => Value::Opaque,
            op::BININT1 => Value::Int(self.byte()?.into()),
            op::BININT2 => Value::Int(u16::from_le_bytes(self.array()?).into()),
            op::BININT => Value::Int(i32::from_le_bytes(self.array()?).into()),
            op::BINFLOAT => {
                self.take(8)?;
                Value::Opaque
            }
            op::LONG1 => self.long(1)?,
            op::LONG4 => self.long(4)?,
            op::SHORT_BINUNICODE | op::SHORT_BINSTRING => self.text(1)?,
            op::BINUNICODE | op::BINSTRING => self.text(4)?,
            op::BINUNICODE8 => self.text(8)?,
            op::SHORT_BINBYTES => self.bytes(1)?,
            op::BINBYTES => self.bytes(4)?,
            op::BINBYTES8 | op::BYTEARRAY8 => self.bytes(8)?,

            op::EMPTY_TUPLE | op::EMPTY_LIST => self.sequence(Vec::new()),
            op::EMPTY_DICT => self.dict(Vec::new()),
            op::TUPLE1 => self.tuple_of(1)?,
            op::TUPLE2 => self.tuple_of(2)?,
            op::TUPLE3 => self.tuple_of(3)?,
            op::TUPLE | op::LIST => {
                let items = self.pop_mark()?;
                self.sequence(items)
            }
            op::DICT => {
                let items = pairs(self.pop_mark()?)?;
                self.dict(items)
            }
            op::FROZENSET => {
                self.pop_mark()?;
                Value::Opaque
            }

            op::GLOBAL => self.global()?,
            op::STACK_GLOBAL => match (self.pop()?, self.pop()?) {
                (Value::Str(name), Value::Str(module)) => known_global(module, name),
                _ => Value::Opaque,
            },
            op::REDUCE | op::NEWOBJ => {
                let (arguments, callable) = (self.pop()?, self.pop()?);
                self.reduce(callable, arguments)?
            }
            op::NEWOBJ_EX => {
                self.tuple_of(3)?;
                Value::Opaque
            }
            op::BINPERSID => {
                let id = self.pop()?;
                self.persistent(id)?
            }
            op::BINGET => self.recall(|machine| Ok(machine.byte()?.into()))?,
            op::LONG_BINGET => self.recall(|machine| Ok(u32::from_le_bytes(machine.array()?)))?,
            op::DUP => self.top()?,

            _ => return self.step_in_place(opcode),
        };
        self.stack.push(value);
        Ok(())
    }

    /// The opcodes that push nothing.
    fn step_in_place(&mut self, opcode: u8) -> Result<(), String> {
        match opcode {
            op::PROTO => _ = self.take(1)?,
            op::FRAME => _ = self.take(8)?,
            op::MARK => self.marks.push(self.stack.len()),
            op::POP if self.marks.last() == Some(&self.stack.len()) => _ = self.marks.pop(),
            op::POP => _ = self.pop()?,
            op::POP_MARK => _ = self.pop_mark()?,
            op::BINPUT => {
                let key = self.byte()?.into();
                self.memoize(key)?;
            }
            op::LONG_BINPUT => {
                let key = u32::from_le_bytes(self.array()?);
                self.memoize(key)?;
            }
            op::MEMOIZE => self.memoize(self.memo.len() as u32)?,
            op::APPEND => {
                let item = self.pop()?;
                self.extend(vec![item])?;
            }
            op::APPENDS => {
                let items = self.pop_mark()?;
                self.extend(items)?;
            }
            op::SETITEM => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.update(vec![(key, value)])?;
            }
            op::SETITEMS => {
                let items = pairs(self.pop_mark()?)?;
                self.update(items)?;
            }
            op::ADDITEMS => {
                self.pop_mark()?;
                self.top()?;
            }
            // The state of an object: attributes of a dictionary (torch's `_metadata`), or of
            // something opaque.
            op::BUILD => {
                self.pop()?;
                self.top()?;
            }
            other => return Err(format!("opcode {other:#04x}, which torch does not write")),
        }
        Ok(())
    }

    fn reduce(&mut self, callable: Value<'a>, arguments: Value<'a>) -> Result<Value<'a>, String> {
        let Value::Global(global) = callable else { return Ok(Value::Opaque) };
        let Value::Sequence(arguments) = arguments else {
            return Err("a call without a tuple of arguments".into());
        };
        match (global, self.heap.sequences[arguments].as_slice()) {
            (Global::OrderedDict, []) => Ok(self.dict(Vec::new())),
            (Global::OrderedDict, _) => Err("an OrderedDict with arguments".into()),
            (Global::RebuildTensor, [Value::Opaque, ..]) => Ok(Value::Opaque),
            (
                Global::RebuildTensor,
                &[
                    Value::Storage(storage),
                    Value::Int(offset),
                    Value::Sequence(sizes),
                    Value::Sequence(strides),
                    ..,
                ],
            ) => {
                self.heap.tensors.push(Rebuilt { storage, offset, sizes, strides });
                Ok(Value::Tensor(self.heap.tensors.len() - 1))
            }
            (Global::RebuildTensor, _) => {
                Err("a tensor without storage, offset, sizes and strides".into())
            }
            (Global::RebuildParameter, [value @ Value::Tensor(_), ..]) => Ok(*value),
            (Global::RebuildParameter | Global::Storage(_), _) => Ok(Value::Opaque),
        }
    }

    /// A reference to something outside of the pickle; torch refers to storages.
    fn persistent(&mut self, id: Value<'a>) -> Result<Value<'a>, String> {
        let Value::Sequence(id) = id else { return Ok(Value::Opaque) };
        match self.heap.sequences[id].as_slice() {
            // (kind, type, key, device, number of elements)
            &[
                Value::Str("storage"),
                Value::Global(Global::Storage(dtype)),
                Value::Str(key),
                _,
                Value::Int(len),
            ] => {
                self.heap.storages.push(Storage { key, dtype, len });
                Ok(Value::Storage(self.heap.storages.len() - 1))
            }
            [Value::Str("storage"), Value::Global(_), ..] => {
                Err("a storage without type, key and length".into())
            }
            _ => Ok(Value::Opaque),
        }
    }

    fn global(&mut self) -> Result<Value<'a>, String> {
        let (module, name) = (self.line()?, self.line()?);
        Ok(known_global(module, name))
    }

    fn extend(&mut self, items: Vec<Value<'a>>) -> Result<(), String> {
        match self.top()? {
            Value::Sequence(list) => self.heap.sequences[list].extend(items),
            Value::Opaque => {}
            _ => return Err("items for what is no list".into()),
        }
        Ok(())
    }

    fn update(&mut self, items: Vec<(Value<'a>, Value<'a>)>) -> Result<(), String> {
        match self.top()? {
            Value::Dict(dict) => self.heap.dicts[dict].extend(items),
            Value::Opaque => {}
            _ => return Err("items for what is no dictionary".into()),
        }
        Ok(())
    }

    fn sequence(&mut self, items: Vec<Value<'a>>) -> Value<'a> {
        self.heap.sequences.push(items);
        Value::Sequence(self.heap.sequences.len() - 1)
    }

    fn dict(&mut self, items: Vec<(Value<'a>, Value<'a>)>) -> Value<'a> {
        self.heap.dicts.push(items);
        Value::Dict(self.heap.dicts.len() - 1)
    }

    fn tuple_of(&mut self, n: usize) -> Result<Value<'a>, String> {
        let mut items = (0..n).map(|_| self.pop()).collect::<Result<Vec<_>, _>>()?;
        items.reverse();
        Ok(self.sequence(items))
    }

    fn memoize(&mut self, key: u32) -> Result<(), String> {
        let value = self.top()?;
        self.memo.insert(key, value);
        Ok(())
    }

    fn recall(
        &mut self,
        key: impl Fn(&mut Self) -> Result<u32, String>,
    ) -> Result<Value<'a>, String> {
        let key = key(self)?;
        self.memo.get(&key).copied().ok_or_else(|| format!("nothing is memoised as {key}"))
    }

    /// How many values lie below the innermost open mark.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Result<Value<'a>, String> {
        let above_mark = self.stack.get(self.floor()..).and_then(<[_]>::last);
        above_mark.copied().ok_or_else(|| "the stack is empty".into())
    }

    fn pop(&mut self) -> Result<Value<'a>, String> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_mark(&mut self) -> Result<Vec<Value<'a>>, String> {
        let mark = self.marks.pop().ok_or("there is no mark")?;
        Ok(self.stack.split_off(mark))
    }
}

/// Reading the input.
impl<'a> Machine<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], String> {
        let rest = &self.input[self.at..];
        let taken = rest.get(..n).ok_or("the pickle ends too early")?;
        self.at += n;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        Ok(self.take(N)?.try_into().expect("N bytes were taken"))
    }

    fn byte(&mut self) -> Result<u8, String> {
        Ok(self.array::<1>()?[0])
    }

    /// Takes what follows a little-endian length of `n` bytes.
    fn counted(&mut self, n: usize) -> Result<&'a [u8], String> {
        let mut length = [0; 8];
        length[..n].copy_from_slice(self.take(n)?);
        // A length beyond usize is beyond the input as well.
        self.take(usize::try_from(u64::from_le_bytes(length)).unwrap_or(usize::MAX))
    }

    fn bytes(&mut self, n: usize) -> Result<Value<'a>, String> {
        self.counted(n)?;
        Ok(Value::Opaque)
    }

    fn text(&mut self, n: usize) -> Result<Value<'a>, String> {
        Ok(str::from_utf8(self.counted(n)?).map_or(Value::Opaque, Value::Str))
    }

    /// A two's complement integer of any length; those over 64 bits are opaque.
    fn long(&mut self, n: usize) -> Result<Value<'a>, String> {
        let digits = self.counted(n)?;
        if digits.len() > 8 {
            return Ok(Value::Opaque);
        }
        let fill = if digits.last().is_some_and(|&high| high >= 0x80) { 0xff } else { 0 };
        let mut extended = [fill; 8];
        extended[..digits.len()].copy_from_slice(digits);
        Ok(Value::Int(i64::from_le_bytes(extended)))
    }

    fn line(&mut self) -> Result<&'a str, String> {
        let rest = &self.input[self.at..];
        let end = rest.iter().position(|&byte| byte == b'\n').ok_or("a line without an end")?;
        self.at += end + 1;
        str::from_utf8(&rest[..end]).map_err(|_| "a line that is not UTF-8".into())
    }
}

fn pairs<'a>(items: Vec<Value<'a>>) -> Result<Vec<(Value<'a>, Value<'a>)>, String> {
    match items.as_chunks() {
        (pairs, []) => Ok(pairs.iter().map(|&[key, value]| (key, value)).collect()),
        _ => Err("a key without a value".into()),
    }
}

fn known_global<'a>(module: &str, name: &str) -> Value<'a> {
    let storage = |dtype| Value::Global(Global::Storage(dtype));
    match (module, name) {
        ("collections", "OrderedDict") => Value::Global(Global::OrderedDict),
        ("torch._utils", "_rebuild_tensor_v2") => Value::Global(Global::RebuildTensor),
        ("torch._utils", "_rebuild_parameter") => Value::Global(Global::RebuildParameter),
        ("torch", "DoubleStorage") => storage(DType::F64),
        ("torch", "FloatStorage") => storage(DType::F32),
        ("torch", "HalfStorage") => storage(DType::F16),
        ("torch", "BFloat16Storage") => storage(DType::BF16),
        ("torch", "LongStorage") => storage(DType::I64),
        ("torch", "IntStorage") => storage(DType::I32),
        ("torch", "ShortStorage") => storage(DType::I16),
        ("torch", "CharStorage") => storage(DType::I8),
        ("torch", "ByteStorage") => storage(DType::U8),
        ("torch", "BoolStorage") => storage(DType::Bool(BoolStore::Native)),
        _ => Value::Opaque,
    }
}

#[cfg(test)]
mod tests;
