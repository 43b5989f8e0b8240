//! A restricted interpreter of the pickles that torch writes (protocols 2 to 5), and their writing.
//!
//! It builds dictionaries, lists, tuples, strings, integers and descriptions of tensors. Every
//! other value is [`Value::Opaque`]: nothing is looked up, called or imported. All containers live
//! in arenas and values are indices into them, so that neither deep nesting nor a container that
//! holds itself costs more than its opcodes.

mod input;
mod op;
mod write;

use std::collections::HashMap;

use burn::tensor::{BoolStore, DType};

use self::input::Input;
pub(crate) use self::write::Writer;

/// The most opcodes of one pickle; a checkpoint of torch takes about 25 per tensor.
const MAX_OPCODES: usize = 1 << 22;

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
    let mut machine = Machine { input: Input::new(pickle), ..Machine::default() };
    let root = machine.run().map_err(|what| format!("byte {}: {what}", machine.opcode_at))?;
    Ok((machine.heap, root))
}

#[derive(Default)]
struct Machine<'a> {
    input: Input<'a>,
    opcode_at: usize,
    stack: Vec<Value<'a>>,
    /// For each open mark, the length of the stack below it.
    marks: Vec<usize>,
    memo: HashMap<u32, Value<'a>>,
    heap: Heap<'a>,
}

impl<'a> Machine<'a> {
    fn run(&mut self) -> Result<Value<'a>, String> {
        match self.input.take(2)? {
            [op::PROTO, 2..=5] => {}
            _ => return Err("no pickle of protocol 2 to 5 begins here".into()),
        }
        for _ in 0..MAX_OPCODES {
            self.opcode_at = self.input.at;
            match self.input.byte()? {
                op::STOP => return self.pop(),
                opcode => self.step(opcode)?,
            }
        }
        Err(format!("more than {MAX_OPCODES} opcodes"))
    }

    fn step(&mut self, opcode: u8) -> Result<(), String> {
        let value = match opcode {
            op::NONE | op::NEWTRUE | op::NEWFALSE | op::EMPTY_SET => Value::Opaque,
            op::BININT1 => Value::Int(self.input.byte()?.into()),
            op::BININT2 => Value::Int(u16::from_le_bytes(self.input.array()?).into()),
            op::BININT => Value::Int(i32::from_le_bytes(self.input.array()?).into()),
            op::BINFLOAT => {
                self.input.take(8)?;
                Value::Opaque
            }
            op::LONG1 => self.input.long(1)?,
            op::LONG4 => self.input.long(4)?,
            op::SHORT_BINUNICODE | op::SHORT_BINSTRING => self.input.text(1)?,
            op::BINUNICODE | op::BINSTRING => self.input.text(4)?,
            op::BINUNICODE8 => self.input.text(8)?,
            op::SHORT_BINBYTES => self.input.bytes(1)?,
            op::BINBYTES => self.input.bytes(4)?,
            op::BINBYTES8 | op::BYTEARRAY8 => self.input.bytes(8)?,

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
            op::BINGET => {
                let key = self.input.byte()?.into();
                self.recall(key)?
            }
            op::LONG_BINGET => {
                let key = u32::from_le_bytes(self.input.array()?);
                self.recall(key)?
            }
            op::DUP => self.top()?,

            _ => return self.step_in_place(opcode),
        };
        self.stack.push(value);
        Ok(())
    }

    /// The opcodes that push nothing.
    fn step_in_place(&mut self, opcode: u8) -> Result<(), String> {
        match opcode {
            op::PROTO => _ = self.input.take(1)?,
            op::FRAME => _ = self.input.take(8)?,
            op::MARK => self.marks.push(self.stack.len()),
            op::POP if self.marks.last() == Some(&self.stack.len()) => _ = self.marks.pop(),
            op::POP => _ = self.pop()?,
            op::POP_MARK => _ = self.pop_mark()?,
            op::BINPUT => {
                let key = self.input.byte()?.into();
                self.memoize(key)?;
            }
            op::LONG_BINPUT => {
                let key = u32::from_le_bytes(self.input.array()?);
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
        let (module, name) = (self.input.line()?, self.input.line()?);
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

    fn recall(&self, key: u32) -> Result<Value<'a>, String> {
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
