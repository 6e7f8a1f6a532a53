//! [`SafetensorsWriter`]: one safetensors file, written as a stream.

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

use super::{Metadata, header};
use crate::{TensorInfo, TensorSink, WeightError, Written, atomic::PartialFile};

/// Small tensors are gathered before they go to the system.
const BUFFER: usize = 1 << 20;

/// Writes one file: header on [`TensorSink::declare`], then the tensors in that order. The file appears under its name
/// when it is finished, replacing one of that name.
#[derive(Debug)]
pub struct SafetensorsWriter {
    target: PathBuf,
    metadata: Metadata,
    partial: PartialFile,
    output: BufWriter<File>,
    plan: Option<Vec<TensorInfo>>,
    written: usize,
    /// Bytes of the tensor that is due.
    part: usize,
    bytes: u64,
}

impl SafetensorsWriter {
    /// Begins a file whose directory must exist. `metadata` goes into the header; loaders of transformers expect
    /// `format: pt`.
    pub fn create(target: &Path, metadata: Metadata) -> Result<Self, WeightError> {
        let partial = PartialFile::create(target)?;
        let handle = partial.file.try_clone().map_err(WeightError::io("open", target))?;
        Ok(Self {
            target: target.to_owned(),
            metadata,
            partial,
            output: BufWriter::with_capacity(BUFFER, handle),
            plan: None,
            written: 0,
            part: 0,
            bytes: 0,
        })
    }

    /// [`TensorSink::finish`] without a box.
    pub fn close(mut self) -> Result<Written, WeightError> {
        let plan = self.plan.take().ok_or_else(|| self.wrong_order("finished before its tensors were declared"))?;
        if let Some(next) = plan.get(self.written) {
            return Err(WeightError::Unfinished {
                path: self.target,
                missing: plan.len() - self.written,
                next: next.name.clone(),
            });
        }
        self.output.flush().map_err(WeightError::io("write", &self.target))?;
        self.partial.commit()?;
        Ok(Written { files: vec![self.target], tensors: plan.len(), bytes: self.bytes })
    }

    /// Whether every declared tensor is written.
    pub(super) fn is_whole(&self) -> bool {
        self.plan.as_ref().is_some_and(|plan| plan.len() == self.written)
    }

    /// Bytes of the tensor that is due, if that is `name`.
    fn due(&self, name: &str) -> Result<usize, WeightError> {
        let Some(plan) = &self.plan else {
            return Err(self.wrong_order("written to before its tensors were declared"));
        };
        match plan.get(self.written) {
            Some(info) if info.name == name => Ok(info.bytes()),
            due => Err(WeightError::OutOfTurn {
                path: self.target.clone(),
                expected: due.map(|info| info.name.clone()),
                found: name.to_owned(),
            }),
        }
    }

    fn wrong_order(&self, what: &'static str) -> WeightError {
        WeightError::WrongOrder { path: self.target.clone(), what }
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), WeightError> {
        self.output.write_all(bytes).map_err(WeightError::io("write", &self.target))
    }
}

impl TensorSink for SafetensorsWriter {
    fn declare(&mut self, plan: &[TensorInfo]) -> Result<(), WeightError> {
        if self.plan.is_some() {
            return Err(self.wrong_order("declared twice"));
        }
        let mut names = std::collections::HashSet::new();
        if let Some(twice) = plan.iter().find(|info| !names.insert(info.name.as_str())) {
            let place = self.target.display().to_string();
            return Err(WeightError::Duplicate { tensor: twice.name.clone(), first: place.clone(), second: place });
        }
        let header = header::build(&self.metadata, plan);
        self.put(&header)?;
        self.plan = Some(plan.to_vec());
        Ok(())
    }

    fn write(&mut self, name: &str, bytes: &[u8]) -> Result<(), WeightError> {
        let expected = self.due(name)?;
        if expected != bytes.len() {
            return Err(WeightError::WrongData { tensor: name.to_owned(), expected, found: bytes.len() });
        }
        self.write_part(name, bytes)
    }

    fn write_part(&mut self, name: &str, bytes: &[u8]) -> Result<(), WeightError> {
        let (expected, found) = (self.due(name)?, self.part + bytes.len());
        if found > expected {
            return Err(WeightError::WrongData { tensor: name.to_owned(), expected, found });
        }
        self.put(bytes)?;
        self.bytes += bytes.len() as u64;
        self.part = found;
        if found == expected {
            self.part = 0;
            self.written += 1;
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Written, WeightError> {
        self.close()
    }
}
