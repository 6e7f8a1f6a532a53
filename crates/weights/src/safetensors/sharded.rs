//! [`ShardedWriter`]: several safetensors files and their index, laid out as another checkpoint is.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io::Write,
    path::{Path, PathBuf},
};

use serde::Serialize;
use serde_json::{Map, Value};

use super::{Layout, SafetensorsWriter};
use crate::{TensorInfo, TensorSink, WeightError, Written, atomic};

/// Writes the files of a [`Layout`] one after another, then the index if the layout has one.
#[derive(Debug)]
pub struct ShardedWriter {
    directory: PathBuf,
    layout: Layout,
    plan: Option<HashMap<String, TensorInfo>>,
    /// The file being written, and how many of its tensors are.
    open: Option<(SafetensorsWriter, usize)>,
    shard: usize,
    written: Written,
}

#[derive(Serialize)]
struct IndexFile<'a> {
    metadata: &'a Map<String, Value>,
    weight_map: BTreeMap<&'a str, &'a str>,
}

impl ShardedWriter {
    /// Begins a checkpoint in an existing directory. Tensors have to be written in the order of
    /// [`Layout::tensors`].
    pub fn create(directory: &Path, layout: Layout) -> Self {
        Self { directory: directory.to_owned(), layout, plan: None, open: None, shard: 0, written: Written::default() }
    }

    /// Opens the next file that has something to hold; files without tensors are written on the way.
    fn advance(&mut self) -> Result<(), WeightError> {
        let plan = self.plan.as_ref().ok_or_else(|| WeightError::WrongOrder {
            path: self.directory.clone(),
            what: "written to before its tensors were declared",
        })?;
        while self.open.is_none() {
            let Some(shard) = self.layout.shards.get(self.shard) else {
                return Ok(());
            };
            let target = self.directory.join(&shard.file_name);
            let mut writer = SafetensorsWriter::create(&target, shard.metadata.clone())?;
            let infos: Vec<TensorInfo> = shard.tensors.iter().map(|name| plan[name].clone()).collect();
            writer.declare(&infos)?;
            self.open = Some((writer, infos.len()));
            if infos.is_empty() {
                Self::close_file(&mut self.open, &mut self.shard, &mut self.written)?;
            }
        }
        Ok(())
    }

    fn close_file(
        open: &mut Option<(SafetensorsWriter, usize)>,
        shard: &mut usize,
        written: &mut Written,
    ) -> Result<(), WeightError> {
        if let Some((writer, _)) = open.take() {
            let one = writer.close()?;
            written.files.extend(one.files);
            written.tensors += one.tensors;
            written.bytes += one.bytes;
            *shard += 1;
        }
        Ok(())
    }

    fn write_index(&self) -> Result<Option<PathBuf>, WeightError> {
        let Some(index) = &self.layout.index else {
            return Ok(None);
        };
        let mut metadata = index.metadata.clone();
        metadata.insert("total_size".to_owned(), self.written.bytes.into());
        let weight_map = self
            .layout
            .shards
            .iter()
            .flat_map(|shard| shard.tensors.iter().map(|tensor| (tensor.as_str(), shard.file_name.as_str())))
            .collect();
        let file = IndexFile { metadata: &metadata, weight_map };
        let mut text = serde_json::to_string_pretty(&file).expect("invariant: names are JSON");
        text.push('\n');
        let path = self.directory.join(&index.file_name);
        atomic::write_file(&path, |file| file.write_all(text.as_bytes()).map_err(WeightError::io("write", &path)))?;
        Ok(Some(path))
    }
}

impl TensorSink for ShardedWriter {
    fn declare(&mut self, plan: &[TensorInfo]) -> Result<(), WeightError> {
        if self.plan.is_some() {
            return Err(WeightError::WrongOrder { path: self.directory.clone(), what: "declared twice" });
        }
        let planned: BTreeSet<&str> = plan.iter().map(|info| info.name.as_str()).collect();
        let laid_out: BTreeSet<&str> = self.layout.tensors().collect();
        let owned = |names: BTreeSet<&str>| names.into_iter().map(str::to_owned).collect::<Vec<_>>();
        let unplanned = owned(laid_out.difference(&planned).copied().collect());
        let extra = owned(planned.difference(&laid_out).copied().collect());
        if !unplanned.is_empty() || !extra.is_empty() {
            return Err(WeightError::PlanMismatch { path: self.directory.clone(), unplanned, extra });
        }
        self.plan = Some(plan.iter().map(|info| (info.name.clone(), info.clone())).collect());
        Ok(())
    }

    fn write(&mut self, name: &str, bytes: &[u8]) -> Result<(), WeightError> {
        self.advance()?;
        let Some((writer, left)) = &mut self.open else {
            return Err(WeightError::OutOfTurn {
                path: self.directory.clone(),
                expected: None,
                found: name.to_owned(),
            });
        };
        writer.write(name, bytes)?;
        *left -= 1;
        if *left == 0 {
            Self::close_file(&mut self.open, &mut self.shard, &mut self.written)?;
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<Written, WeightError> {
        self.advance()?;
        if let Some((writer, _)) = self.open.take() {
            // Says which tensor is due.
            return writer.close();
        }
        let index = self.write_index()?;
        self.written.files.extend(index);
        Ok(self.written)
    }
}
