//! Trains a small denoiser with every objective and prints the bound that each reaches; a few seconds.
//!
//! Texts count upwards from a random start, modulo 16. A denoiser that has understood needs one token to know the others, so the
//! best bound is `ln 16 / 8` = 0.35 nats a token.

use dlm_diffusion::{
    AttentionLayout, AutoregressivePart, CleanBatch, Denoiser, DenoiserInput, ForwardProcess, Head, LastBlock,
    LossNormalization, LossWeight, MaskPolicy, Masking, NoiseKey, NoiseSchedule, NoisedBatch, Objective, Purpose,
    Result, ScheduleName, TokenLoss, Views, Visibility, WeightRule, diffusion_loss,
    evaluate::{BoundConfig, EvalDocument, autoregressive, bound},
};
use tch::{Device, Kind, Tensor, nn, nn::OptimizerConfig};

const VOCAB: i64 = 17;
const MASK: i64 = 16;
const LEN: usize = 8;
const ROWS: usize = 32;
const STEPS: u64 = 250;
const WIDTH: i64 = 64;

fn main() -> Result<()> {
    // Tensors are too small to be shared out.
    tch::set_num_threads(1);
    let linear = || ForwardProcess::new(NoiseSchedule::Linear { eps: 1e-3 }, MaskPolicy::new(MASK));
    let scheduled = |name| {
        Ok::<_, dlm_diffusion::DiffusionError>(ForwardProcess::new(
            NoiseSchedule::new(name, 1e-3)?,
            MaskPolicy::new(MASK),
        ))
    };
    let elbo = Objective::new(LossNormalization::Token);
    let weighted = |weight: WeightRule| elbo.weighted(weight);
    let smoothed = elbo.scoring(TokenLoss { label_smoothing: 0.05, z_loss: 1e-4, forbidden: Some(MASK) });
    let runs: Vec<(&str, ForwardProcess, Objective)> = vec![
        ("linear, 1/p (LLaDA, Axolotl)", linear(), elbo),
        ("cosine, ELBO weight", scheduled(ScheduleName::Cosine)?, elbo),
        ("sine, ELBO weight (dllm)", scheduled(ScheduleName::Sine)?, elbo),
        (
            "log_linear, SUBS (MDLM)",
            scheduled(ScheduleName::LogLinear)?,
            elbo.scoring(TokenLoss { forbidden: Some(MASK), ..TokenLoss::default() }),
        ),
        ("uniform weight", linear(), weighted(LossWeight::Uniform.into())),
        ("weights capped at 5", linear(), weighted(WeightRule::elbo().capped(5.0))),
        ("CART (Dream)", linear(), weighted(LossWeight::Cart.into())),
        ("label smoothing and z-loss", linear(), smoothed),
        ("exact counts", linear().masking(Masking::ExactCount), elbo),
        ("complementary pairs", linear().viewed(Views::Pair), elbo),
        ("blocks of 4 (BD3-LM)", linear().in_blocks(4, LastBlock::Shorter)?, elbo),
        (
            "pairs in blocks, no weight (Fast-dLLM v2)",
            linear().in_blocks(4, LastBlock::Shorter)?.viewed(Views::Pair),
            weighted(LossWeight::Uniform.into()),
        ),
        ("attention annealed (DiffuLLaMA)", linear(), elbo),
        (
            "masked, and half as much autoregressive",
            linear().beside(AutoregressivePart { weight: 0.5, logits_shift: false })?,
            elbo,
        ),
        ("autoregressive, exact", linear().viewed(Views::Autoregressive { logits_shift: false }), elbo),
    ];
    println!("{:<44}{:>8}  {:>8}", "objective", "nelbo", "+-");
    for (name, process, objective) in runs {
        let anneals = name.starts_with("attention");
        let report = train(&process, &objective, anneals)?;
        println!("{name:<44}{:>8.3}  {:>8.3}", report.0, report.1);
    }
    println!("{:<44}{:>8.3}", "the best there is", 16f64.ln() / LEN as f64);
    Ok(())
}

/// Trains a denoiser and gives its bound on other texts, in nats per token, with its standard error.
fn train(process: &ForwardProcess, objective: &Objective, anneals: bool) -> Result<(f64, f64)> {
    tch::manual_seed(1);
    let store = nn::VarStore::new(Device::Cpu);
    let denoiser = Tiny::new(&store.root());
    let mut optimizer = nn::Adam::default().build(&store, 3e-3)?;
    for step in 0..STEPS {
        let key = |purpose| NoiseKey::new(7, purpose, step);
        let shape = [ROWS as i64, LEN as i64];
        let clean = CleanBatch::new(texts(ROWS, step))?;
        // A timestep for each block, or for each row.
        let block_length = process.block_length.unwrap_or(LEN as i64) as usize;
        let draws = key(Purpose::Timestep).uniforms(0, ROWS * LEN);
        let t: Vec<f32> = (0..ROWS * LEN).map(|i| draws[i / block_length]).collect();
        let uniform = Tensor::from_slice(&key(Purpose::Mask).uniforms(0, ROWS * LEN)).view(shape);
        let mut process = process.clone();
        if anneals {
            process = process.seen(Visibility::annealed(step, STEPS / 2, key(Purpose::Annealing)));
        }
        let views = process.noise_views(clean, &Tensor::from_slice(&t).view(shape), &uniform)?;
        let counts = views.iter().map(NoisedBatch::counts).sum();
        optimizer.zero_grad();
        for view in &views {
            diffusion_loss(&denoiser, view, objective, &counts)?.loss.backward();
        }
        optimizer.step();
    }
    let held_out: Vec<Vec<i64>> = Vec::try_from(texts(64, 1 << 40))?;
    let documents: Vec<EvalDocument> =
        held_out.into_iter().enumerate().map(|(id, ids)| EvalDocument::new(id as i64, ids)).collect();
    let config =
        BoundConfig { passes: 8, batch_size: 64, block_length: process.block_length, ..BoundConfig::new(MASK) };
    let report = match process.views {
        Views::Autoregressive { logits_shift } => autoregressive(&denoiser, &documents, logits_shift, &config)?,
        _ => bound(&denoiser, &documents, &config)?,
    };
    Ok((report.nats_per_token, report.standard_error.unwrap_or_default()))
}

fn texts(rows: usize, seed: u64) -> Tensor {
    let starts = NoiseKey::new(3, Purpose::Preview, seed).uniforms(0, rows);
    let ids: Vec<i64> =
        starts.iter().flat_map(|u| (0..LEN as i64).map(move |i| ((*u * 16.0) as i64 + i) % 16)).collect();
    Tensor::from_slice(&ids).view([rows as i64, LEN as i64])
}

/// One layer of attention and one of a perceptron.
struct Tiny {
    tokens: nn::Embedding,
    positions: nn::Embedding,
    project: [nn::Linear; 3],
    hidden: nn::Linear,
    output: nn::Linear,
    head: Output,
}

struct Output(nn::Linear);

impl Head for Output {
    fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        Ok(hidden.apply(&self.0))
    }
}

impl Tiny {
    fn new(path: &nn::Path<'_>) -> Self {
        let linear = |name: &str, from, to| nn::linear(path / name, from, to, nn::LinearConfig::default());
        Self {
            tokens: nn::embedding(path / "tokens", VOCAB, WIDTH, nn::EmbeddingConfig::default()),
            positions: nn::embedding(path / "positions", LEN as i64, WIDTH, nn::EmbeddingConfig::default()),
            project: ["query", "key", "value"].map(|name| linear(name, WIDTH, WIDTH)),
            hidden: linear("hidden", WIDTH, 2 * WIDTH),
            output: linear("output", 2 * WIDTH, WIDTH),
            head: Output(linear("head", WIDTH, VOCAB)),
        }
    }
}

impl Denoiser for Tiny {
    fn hidden_states(&self, input: &DenoiserInput<'_>) -> Result<Tensor> {
        let size = input.ids.size();
        let counted = Tensor::arange(size[1], (Kind::Int64, Device::Cpu)).expand([size[0], size[1]], false);
        let x = input.ids.apply(&self.tokens) + input.position_ids.unwrap_or(&counted).apply(&self.positions);
        let [query, key, value] = self.project.each_ref().map(|linear| x.apply(linear));
        let scores = query.matmul(&key.transpose(1, 2)) / (WIDTH as f64).sqrt();
        let scores = match AttentionLayout::dense_mask(input.attention, size[1], Device::Cpu) {
            Some(mask) => scores.masked_fill(&mask.squeeze_dim(1).logical_not(), -1e9),
            None => scores,
        };
        let x = x + scores.softmax(-1, Kind::Float).matmul(&value);
        let x = (&x + x.apply(&self.hidden).relu().apply(&self.output)).flatten(0, 1);
        Ok(match input.wanted {
            Some(wanted) => x.index_select(0, wanted),
            None => x,
        })
    }

    fn head(&self) -> &dyn Head {
        &self.head
    }
}
