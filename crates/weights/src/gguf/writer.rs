//! [`GgufWriter`]: a GGUF file, or several of limited size, written as a stream.

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

use super::shards::{self, Shard};
use super::{ALIGNMENT, GgufFault, GgufTensor, Metadata, encode};
use crate::{WeightError, Written, atomic::PartialFile};

/// Small tensors are gathered before they go to the system.
const BUFFER: usize = 1 << 20;

/// Writes a model: header on [`GgufWriter::declare`], then the tensors in that order. Files appear under their names when
/// the writer is closed, replacing those of these names; a writer that is dropped before leaves nothing behind.
#[derive(Debug)]
pub struct GgufWriter {
    target: PathBuf,
    metadata: Metadata,
    limit: u64,
    plan: Option<Vec<GgufTensor>>,
    /// How many tensors each file takes.
    counts: Vec<usize>,
    /// Files begun, all but the last of them complete.
    files: Vec<(PathBuf, PartialFile)>,
    output: Option<BufWriter<File>>,
    /// Tensors complete.
    written: usize,
    /// Bytes of the tensor that is due that were written.
    part: usize,
    bytes: u64,
}

impl GgufWriter {
    /// Begins a file whose directory must exist. The keys of alignment and of shards are the writer's.
    pub fn create(target: &Path, metadata: &Metadata) -> Result<Self, WeightError> {
        Self::split(target, metadata, u64::MAX)
    }

    /// Begins a model that is divided into files of at most `limit` bytes if it is larger: `stem-00001-of-00003.gguf` and
    /// so on where `target` is `stem.gguf`. A tensor that is larger by itself gets a file of its own.
    pub fn split(target: &Path, metadata: &Metadata, limit: u64) -> Result<Self, WeightError> {
        encode::check_metadata(metadata).map_err(unwritable(target))?;
        Ok(Self {
            target: target.to_owned(),
            metadata: metadata.clone(),
            limit,
            plan: None,
            counts: Vec::new(),
            files: Vec::new(),
            output: None,
            written: 0,
            part: 0,
            bytes: 0,
        })
    }

    /// Announces every tensor, in the order they will be written. Called once, first.
    pub fn declare(&mut self, plan: &[GgufTensor]) -> Result<(), WeightError> {
        if self.plan.is_some() {
            return Err(self.wrong_order("declared twice"));
        }
        encode::check_tensors(plan).map_err(unwritable(&self.target))?;
        self.counts = shards::plan(&self.metadata, plan, self.limit);
        if self.counts.len() > usize::from(u16::MAX) {
            return Err(unwritable(&self.target)(GgufFault::TooManyShards { found: self.counts.len() }));
        }
        self.plan = Some(plan.to_vec());
        self.begin_file()?;
        self.turn_over()
    }

    /// Writes the next tensor: the name that is due, and all of its bytes.
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<(), WeightError> {
        let expected = self.due(name)?;
        if self.part != 0 || bytes.len() != expected {
            return Err(WeightError::WrongData { tensor: name.to_owned(), expected, found: self.part + bytes.len() });
        }
        self.write_part(name, bytes)
    }

    /// Writes the next bytes of the tensor that is due, which is complete when all of its bytes were written.
    pub fn write_part(&mut self, name: &str, bytes: &[u8]) -> Result<(), WeightError> {
        let expected = self.due(name)?;
        let found = self.part.saturating_add(bytes.len());
        if found > expected {
            return Err(WeightError::WrongData { tensor: name.to_owned(), expected, found });
        }
        self.put(bytes)?;
        self.part = found;
        self.bytes += bytes.len() as u64;
        if found < expected {
            return Ok(());
        }
        self.put(&[0; ALIGNMENT][..expected.next_multiple_of(ALIGNMENT) - expected])?;
        self.part = 0;
        self.written += 1;
        self.turn_over()
    }

    /// Makes what was written durable and gives it its name. Of several files the first, which loaders open, comes last.
    pub fn close(mut self) -> Result<Written, WeightError> {
        let plan = self.plan.take().ok_or_else(|| self.wrong_order("finished before its tensors were declared"))?;
        if let Some(next) = plan.get(self.written) {
            let missing = plan.len() - self.written;
            return Err(WeightError::Unfinished { path: self.target, missing, next: next.name.clone() });
        }
        self.end_file()?;
        let mut files = Vec::new();
        for (path, partial) in self.files.into_iter().rev() {
            partial.commit()?;
            files.push(path);
        }
        files.reverse();
        Ok(Written { files, tensors: plan.len(), bytes: self.bytes })
    }

    /// The size of the tensor that is due, if it is the one of this name.
    fn due(&self, name: &str) -> Result<usize, WeightError> {
        let plan = self.plan.as_ref().ok_or_else(|| self.wrong_order("written to before its tensors were declared"))?;
        match plan.get(self.written) {
            Some(tensor) if tensor.name == name => Ok(tensor.bytes().expect("invariant: the tensor was checked")),
            due => Err(WeightError::OutOfTurn {
                path: self.target.clone(),
                expected: due.map(|tensor| tensor.name.clone()),
                found: name.to_owned(),
            }),
        }
    }

    /// Goes on to the next file once the one at hand has its tensors.
    fn turn_over(&mut self) -> Result<(), WeightError> {
        let complete: usize = self.counts[..self.files.len()].iter().sum();
        if self.written == complete && self.files.len() < self.counts.len() {
            self.end_file()?;
            self.begin_file()?;
        }
        Ok(())
    }

    fn begin_file(&mut self) -> Result<(), WeightError> {
        let (index, count) = (self.files.len(), self.counts.len());
        let plan = self.plan.as_ref().expect("invariant: tensors are declared before a file begins");
        let mut metadata = if index == 0 { self.metadata.clone() } else { Metadata::new() };
        let mut path = self.target.clone();
        if count > 1 {
            path = shards::name(&path, index, count);
            let shard = Shard { index: index as u64, count: count as u64, tensors: Some(plan.len() as u64) };
            shard.put(&mut metadata);
        }
        let first: usize = self.counts[..index].iter().sum();
        let header = encode::header(&metadata, &plan[first..first + self.counts[index]]);
        let partial = PartialFile::create(&path)?;
        let handle = partial.file.try_clone().map_err(WeightError::io("open", &path))?;
        self.output = Some(BufWriter::with_capacity(BUFFER, handle));
        self.files.push((path, partial));
        self.put(&header)
    }

    fn end_file(&mut self) -> Result<(), WeightError> {
        match self.output.take() {
            Some(mut output) => output.flush().map_err(WeightError::io("write", &self.target)),
            None => Ok(()),
        }
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), WeightError> {
        let output = self.output.as_mut().expect("invariant: a file is open while tensors are due");
        output.write_all(bytes).map_err(WeightError::io("write", &self.target))
    }

    fn wrong_order(&self, what: &'static str) -> WeightError {
        WeightError::WrongOrder { path: self.target.clone(), what }
    }
}

fn unwritable(path: &Path) -> impl FnOnce(GgufFault) -> WeightError {
    let path = path.to_owned();
    move |fault| WeightError::GgufUnwritable { path, fault }
}
