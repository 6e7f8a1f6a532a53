//! GGUF files and block formats from a shell, for comparison with other programs.
//!
//! - `encode TYPE IN OUT [TIMES]` turns raw F32 numbers, in rows of 4096, into blocks, so many times over.
//! - `decode TYPE IN OUT [TIMES]` turns blocks into raw F32 numbers.
//! - `values IN OUT` turns every tensor of a GGUF file into raw F32 numbers, one after the other.
//! - `copy IN OUT [LIMIT]` reads a GGUF file and writes it again, as several of at most so many bytes if need be.

use std::io::{BufWriter, Write};
use std::{env, error::Error, fs, path::Path};

use qwen_tune_weights::gguf::{GgufFile, GgufWriter, TensorType, blocks};

const ROW: usize = 4096;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["encode", ty, from, to, times @ ..] => {
            let ty = TensorType::from_name(ty).ok_or("no such type")?;
            let values: Vec<f32> =
                fs::read(from)?.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
            let mut bytes = vec![0; ty.row_bytes(values.len()).ok_or("no whole number of blocks")?];
            for _ in 0..count(times)? {
                blocks::encode_into(ty, &values, ROW, &mut bytes)?;
            }
            fs::write(to, bytes)?;
        }
        ["decode", ty, from, to, times @ ..] => {
            let ty = TensorType::from_name(ty).ok_or("no such type")?;
            let bytes = fs::read(from)?;
            let mut values = vec![0.0_f32; bytes.len() / ty.block_bytes() * ty.block()];
            for _ in 0..count(times)? {
                blocks::decode(ty, &bytes, &mut values)?;
            }
            fs::write(to, values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())?;
        }
        ["values", from, to] => {
            let file = GgufFile::open(Path::new(from))?;
            let mut out = BufWriter::new(fs::File::create(to)?);
            for tensor in file.tensors() {
                for value in file.read_f32(&tensor.name)? {
                    out.write_all(&value.to_le_bytes())?;
                }
            }
            out.flush()?;
        }
        ["copy", from, to, limit @ ..] => {
            let file = GgufFile::open(Path::new(from))?;
            let limit = limit.first().map_or(Ok(u64::MAX), |limit| limit.parse())?;
            let mut writer = GgufWriter::split(Path::new(to), file.metadata(), limit)?;
            writer.declare(file.tensors())?;
            for tensor in file.tensors() {
                writer.write(&tensor.name, &file.read(&tensor.name)?)?;
            }
            writer.close()?;
        }
        _ => {
            return Err(
                "encode TYPE IN OUT [TIMES] | decode TYPE IN OUT [TIMES] | values IN OUT | copy IN OUT [LIMIT]".into(),
            );
        }
    }
    Ok(())
}

fn count(times: &[&str]) -> Result<usize, std::num::ParseIntError> {
    times.first().map_or(Ok(1), |times| times.parse())
}
