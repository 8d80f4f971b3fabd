//! Several ranks as threads of one process. Their engine passes tensors from rank to rank as they
//! are, and counts the bytes of everything that travels through the host's memory.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};

use burn::tensor::TensorData;
use serde_json::json;

use super::super::gradients::GradientSum;
use super::super::optimizer::Optimizer;
use super::*;
use crate::kernels::host::HostCopies;
use crate::model::config::ModelConfig;
use crate::model::decoder::Decoder;
use crate::model::parameter::{Arrival, Weight};
use crate::parallel::{Abort, Communicator, Gathered};
use crate::recipe::{Recipe, Stage, TrainSettings};

/// Rows of the embedding's gradient in a micro-batch.
const ROWS: usize = 60;

/// What all ranks share.
struct Mesh {
    given: Mutex<BTreeMap<usize, Given>>,
    everyone: Barrier,
    host_bytes: AtomicUsize,
}

#[derive(Clone)]
enum Given {
    Bytes(Vec<Vec<u8>>),
    Vector(Box<(Tensor<1>, Vec<usize>)>),
}

struct ThreadRank {
    rank: usize,
    world: usize,
    mesh: Arc<Mesh>,
}

impl ThreadRank {
    /// What all ranks give, in the order of the ranks.
    fn all(&self, own: Given) -> Vec<Given> {
        self.mesh.given.lock().unwrap().insert(self.rank, own);
        self.mesh.everyone.wait();
        let all = self.mesh.given.lock().unwrap().values().cloned().collect();
        self.mesh.everyone.wait();
        all
    }

    fn vectors(&self, own: Tensor<1>, lengths: &[usize]) -> Vec<(Tensor<1>, Vec<usize>)> {
        let all = self.all(Given::Vector(Box::new((own, lengths.to_vec()))));
        let vector = |given| match given {
            Given::Vector(vector) => *vector,
            Given::Bytes(_) => panic!("another rank is in another collective"),
        };
        all.into_iter().map(vector).collect()
    }
}

impl Communicator for ThreadRank {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.world
    }

    fn reduce_scatter(&self, bucket: Tensor<1>) -> Box<dyn Arriving> {
        let shard = bucket.dims()[0] / self.world;
        let all = self.vectors(bucket, &[]).into_iter();
        let pieces = all.map(|(bucket, _)| bucket.narrow(0, self.rank * shard, shard) + 0.0);
        Box::new(pieces.collect::<Vec<_>>())
    }

    fn all_gather(&self, shard: Tensor<1>) -> Gathered {
        let all = self.vectors(shard, &[]);
        let all = Tensor::cat(all.into_iter().map(|(shard, _)| shard).collect(), 0);
        Gathered::arriving(all, Arc::new(Complete))
    }

    fn exchange_elements(
        &self,
        vector: Tensor<1>,
        sent: &[usize],
        received: &[usize],
    ) -> Tensor<1> {
        let all = self.vectors(vector, sent);
        let coming = all.iter().zip(received).filter(|(_, length)| **length > 0);
        let parts: Vec<Tensor<1>> = coming
            .map(|((vector, sent), length)| {
                assert_eq!(sent[self.rank], *length, "both ranks know the length");
                let start: usize = sent[..self.rank].iter().sum();
                vector.clone().narrow(0, start, *length)
            })
            .collect();
        match parts.is_empty() {
            true => Tensor::zeros([0], (&all[0].0.device(), all[0].0.dtype())),
            false => Tensor::cat(parts, 0),
        }
    }

    fn exchange(&self, parts: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
        let bytes = parts.iter().map(Vec::len).sum();
        self.mesh.host_bytes.fetch_add(bytes, Ordering::Relaxed);
        let part = |given| match given {
            Given::Bytes(mut parts) => parts.swap_remove(self.rank),
            Given::Vector(_) => panic!("another rank is in another collective"),
        };
        self.all(Given::Bytes(parts)).into_iter().map(part).collect()
    }

    fn gather(&self, bytes: &[u8]) -> Vec<Vec<u8>> {
        self.exchange(vec![bytes.to_vec(); self.world])
    }

    fn gather_to_first(&self, bytes: &[u8]) -> Vec<Vec<u8>> {
        self.gather(bytes)
    }

    fn broadcast(&self, bytes: Vec<u8>) -> Vec<u8> {
        self.gather(&bytes).swap_remove(0)
    }

    fn barrier(&self) {
        self.mesh.everyone.wait();
    }

    fn abort(&self) -> Abort {
        |code| std::process::exit(code)
    }
}

/// Threads wait in the collective.
#[derive(Debug)]
struct Complete;

impl Arrival for Complete {
    fn wait(&self) {}
}

/// Numbers between −0.5 and 0.5.
fn numbers(seed: u32, len: usize) -> Vec<f32> {
    let number = |at: usize| {
        let bits = (at as u32).wrapping_mul(1_664_525).wrapping_add(seed.wrapping_mul(747_796_405));
        let bits = (bits ^ (bits >> 15)).wrapping_mul(0x2C1B_3C6D);
        (bits >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..len).map(number).collect()
}

/// A small model. The matrices' lengths and the width of rows do not divide shards, and some
/// parameters lie in two shards.
fn model(tied: bool, device: &Device, dtype: DType) -> Decoder {
    let raw = json!({"model_type": "qwen2", "vocab_size": 301, "hidden_size": 48,
        "intermediate_size": 100, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 32, "tie_word_embeddings": tied});
    let config = ModelConfig::from_json(raw, Path::new("config.json")).unwrap();
    let mut made = 0;
    let built: Result<_, Infallible> = Decoder::build(Arc::new(config), |_, shape| {
        made += 1;
        let values = numbers(made, shape.iter().product());
        Ok(Weight::from_values(values, device, dtype))
    });
    let Ok(model) = built;
    model
}

/// Gives `gradients` the made-up gradient of micro-batch `index`, in the order of a backward pass.
fn differentiate(index: usize, model: &Decoder, dtype: DType, gradients: &mut GradientSum) {
    let device = model.device();
    let vector = |seed, len| {
        let data = TensorData::new(numbers(seed, len), [len]);
        Tensor::<1>::from_data(data, (&device, dtype))
    };
    let seed = 1_000 * (index + 1) as u32;
    for (at, parameter) in model.parameters().into_iter().enumerate().rev() {
        if parameter.id != model.embed_tokens.id || model.lm_head.is_none() {
            gradients.add(parameter.id, vector(seed + at as u32, parameter.len()));
        }
    }
    let ids: Vec<u32> = (0..ROWS as u32).map(|t| (t * t + 7 * index as u32) % 301).collect();
    let width = model.embed_tokens.shape[1];
    let rows = vector(seed + 999, ids.len() * width).reshape([ids.len(), width]);
    gradients.add_rows(&model.embed_tokens, &ids, rows);
}

/// Norms and final weights of three steps of five micro-batches each.
fn train(
    ranks: &Ranks,
    model: &mut Decoder,
    settings: &TrainSettings,
) -> (Vec<u64>, Vec<Vec<f32>>) {
    let device = model.device();
    let dtype = model.embed_tokens.value.dtype();
    let mut optimizer = Optimizer::new(model, settings, ranks);
    let mut norms = Vec::new();
    for step in 0..3 {
        let layout = optimizer.layout().clone();
        let mut gradients = GradientSum::over(ranks, &layout);
        let micro_batches: Vec<usize> = (5 * step..5 * step + 5).collect();
        for round in micro_batches.chunks(ranks.world()) {
            gradients.begin_round(round.len());
            if let Some(index) = round.get(ranks.rank()) {
                differentiate(*index, model, dtype, &mut gradients);
            }
            gradients.end_round(&device);
        }
        norms.push(gradients.norm().to_bits());
        optimizer.step(model, &mut gradients, 1e-2, 0.3, ranks);
    }
    let values = |weights: Tensor<1>| weights.cast(DType::F32).into_data().try_into_vec().unwrap();
    let weights = model.parameters().into_iter().map(|p| values(p.vector())).collect();
    (norms, weights)
}

fn settings(more: &str) -> TrainSettings {
    let text = format!("model_name_or_path: m\ndataset_name: d\nweight_decay: 0.1\n{more}");
    Recipe::parse(&text, Path::new("r.yaml"), Stage::Sft, &[]).unwrap().train
}

/// Trains on `world` ranks. Returns the result of the first rank, which all have, and the bytes
/// that went through the host.
fn train_on(
    world: usize,
    model: &Decoder,
    settings: &TrainSettings,
) -> ((Vec<u64>, Vec<Vec<f32>>), usize) {
    let mesh = Arc::new(Mesh {
        given: Mutex::default(),
        everyone: Barrier::new(world),
        host_bytes: AtomicUsize::new(0),
    });
    let results: Vec<_> = std::thread::scope(|scope| {
        let start = |rank| {
            let (mesh, mut model) = (mesh.clone(), model.clone());
            scope.spawn(move || {
                let ranks = Ranks::with_engine(Box::new(ThreadRank { rank, world, mesh }));
                train(&ranks, &mut model, settings)
            })
        };
        let threads: Vec<_> = (0..world).map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(results.iter().all(|result| *result == results[0]), "all ranks have the same weights");
    (results.into_iter().next().unwrap(), mesh.host_bytes.load(Ordering::Relaxed))
}

/// Fails unless several ranks give the bits of one rank, with tensors that stay on `device`.
fn check(device: &Device, dtype: DType, worlds: &[usize], kinds: &[(bool, &str)]) {
    for (tied, keys) in kinds {
        let (model, settings) = (model(*tied, device, dtype), settings(keys));
        let alone = train(&Ranks::one(), &mut model.clone(), &settings);
        for world in worlds.iter().copied() {
            let before = HostCopies::so_far();
            let (several, messages) = train_on(world, &model, &settings);
            let copies = HostCopies::so_far().since(before);
            let what = format!("{world} ranks, {dtype:?}, tied {tied}, {keys}");
            assert_eq!(several.0, alone.0, "norms: {what}");
            assert!(several.1 == alone.1, "weights: {what}");
            check_host_traffic(&model, world, messages, copies, &what);
        }
    }
}

/// Fails if more goes through the host than ids of rows and sums of squares of blocks. The bounds
/// are far below the bytes of gradients and weights.
fn check_host_traffic(
    model: &Decoder,
    world: usize,
    messages: usize,
    copies: HostCopies,
    what: &str,
) {
    const STEPS: usize = 3;
    const MICRO_BATCHES: usize = 5;
    let blocks: usize =
        model.parameters().iter().map(|p| p.len().div_ceil(SQUARES_BLOCK) + world).sum();
    // A row may lie in two shards. Each rank gathers all sums.
    let ids = STEPS * MICRO_BATCHES * 4 * (2 * ROWS + 2 * world);
    let squares = STEPS * 8 * blocks * world;
    assert!(messages <= ids + squares, "{messages} bytes are sent as messages: {what}");
    // Each rank reads its sums of squares, and the sum of all.
    assert!(copies.reads as usize <= STEPS * world * 2, "{copies:?}: {what}");
    assert!(copies.read_bytes as usize <= squares, "{copies:?}: {what}");
    // Rows are cut into at most 3 units. Their places are uploaded to sort them and to add them.
    let places = 10 * 3 * ids;
    assert!(copies.uploaded_bytes as usize <= places + squares, "{copies:?}: {what}");
    let weights: usize = model.parameters().iter().map(|p| p.len() * 2).sum();
    assert!(squares * 5 < STEPS * weights * world, "the bounds mean something: {squares}");
}

#[test]
fn several_ranks_give_the_bits_of_one_on_the_cpu() {
    let adafactor = "optim: adafactor\n";
    let kinds =
        [(false, ""), (true, ""), (false, adafactor), (true, "gradient_reduce_dtype: bf16")];
    check(&Device::flex(), DType::F32, &[2, 3, 4], &kinds);
    let kinds = [(false, ""), (true, "gradient_reduce_dtype: fp16")];
    check(&Device::flex(), DType::BF16, &[2, 3, 4], &kinds);
}

/// The same code on CubeCL's CPU runtime, with the kernels of GPUs. `tests/ranks_cube.rs` has runs in
/// bfloat16, for which the linker must export a function.
#[cfg(feature = "cube-cpu")]
#[test]
fn several_ranks_give_the_bits_of_one_on_cube_cpu() {
    let device = Device::cpu();
    check(&device, DType::F32, &[3], &[(false, "")]);
    check(&device, DType::F32, &[2], &[(true, "")]);
}

/// On a GPU the weights of a bucket become views of the vector that the ranks gathered, except for
/// those that do not begin and end at aligned addresses.
#[cfg(feature = "cube-cpu")]
#[test]
fn gathered_weights_are_views_of_their_bucket() {
    use crate::kernels::update::{is_view, part};
    let len = 3 * SQUARES_BLOCK;
    let data = TensorData::new(numbers(1, len), [len]);
    let bucket = Tensor::<1>::from_data(data, &Device::cpu());
    let gathered = Gathered::arriving(bucket.clone(), Arc::new(Complete));
    let whole = gathered.weight(SQUARES_BLOCK, SQUARES_BLOCK);
    assert!(matches!(whole, Weight::Arriving(..)) && is_view(&whole.vector(), &bucket));
    let odd = gathered.weight(SQUARES_BLOCK, 101);
    assert!(matches!(odd, Weight::Float(_)) && !is_view(&odd.vector(), &bucket));
    let values = |vector: Tensor<1>| vector.into_data().try_into_vec::<f32>().unwrap();
    let all = values(bucket.clone());
    assert_eq!(values(whole.vector()), all[SQUARES_BLOCK..][..SQUARES_BLOCK]);
    assert_eq!(values(odd.vector()), all[SQUARES_BLOCK..][..101]);
    // A sum in place does not write into the bucket.
    let sum = add_into(whole.vector(), part(&bucket, 0, SQUARES_BLOCK));
    assert_eq!(values(bucket), all);
    assert_ne!(values(sum), all[SQUARES_BLOCK..][..SQUARES_BLOCK]);
}
