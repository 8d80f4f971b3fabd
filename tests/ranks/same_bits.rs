//! The same run on any number of ranks: weights, optimizer state and record are bit-identical.

use std::path::Path;

use super::common::*;
use super::*;

const TWENTY_STEPS: [&str; 7] = [
    "max_steps=20",
    "logging_steps=1",
    "save_strategy=steps",
    "save_steps=20",
    "eval_strategy=steps",
    "eval_steps=8",
    "per_device_eval_batch_size=4",
];

#[test]
fn sft_gives_the_same_bits_on_1_2_4_and_16_ranks() {
    if !can_run_ranks() {
        return;
    }
    let world = world("ranks-sft");
    let recipe = world.join("sft.yaml");
    let base = format!("model_name_or_path={}", world.join("base").display());
    let mut more = settings(&TWENTY_STEPS);
    // 100 rows: the seventh step of an epoch has 4 micro-batches, so 12 of 16 ranks have none.
    more.extend(settings(&[
        &base,
        "max_train_samples=100",
        "max_eval_samples=30",
        "packing=false",
    ]));
    let run = Run { recipe: &recipe, stage: "sft", rows: 1, micro_batches: 16, more };
    run.assert_same_bits(&world, &[1, 2, 4, 16]);
}

#[test]
fn dpo_gives_the_same_bits_on_1_2_4_and_16_ranks() {
    if !can_run_ranks() {
        return;
    }
    let world = world("ranks-dpo");
    let recipe = world.join("dpo.yaml");
    let base = format!("model_name_or_path={}", world.join("base").display());
    let mut more = settings(&TWENTY_STEPS);
    more.extend(settings(&[&base, "max_train_samples=100", "max_eval_samples=30"]));
    let run = Run { recipe: &recipe, stage: "dpo", rows: 1, micro_batches: 16, more };
    run.assert_same_bits(&world, &[1, 2, 4, 16]);
}

#[test]
fn unequal_lengths_short_micro_batches_and_every_optimizer_give_the_same_bits() {
    if !can_run_ranks() {
        return;
    }
    // 43 rows in micro-batches of 3: the last micro-batch has one row, and the last step has 3 of
    // 12 micro-batches.
    for (stage, optimizer) in [("sft", "rmsprop"), ("dpo", "adamw_torch")] {
        let world = unequal_world(&format!("ranks-unequal-{stage}"));
        let recipe = world.join(format!("{stage}-unequal.yaml"));
        let optimizer = format!("optim={optimizer}");
        let more = [
            "max_steps=6",
            "logging_steps=2",
            "save_strategy=steps",
            "save_steps=3",
            "weight_decay=0.1",
        ];
        let mut more = settings(&more);
        more.extend(settings(&[&optimizer, "gradient_checkpointing=true", "max_grad_norm=0.5"]));
        // Each micro-batch is computed in two or three parts, on different ranks.
        more.extend(settings(&["max_tokens_per_microbatch=300"]));
        let run = Run { recipe: &recipe, stage, rows: 3, micro_batches: 12, more };
        // No bucket is divisible by 3.
        run.assert_same_bits(&world, &[1, 3, 4, 12]);
    }
}

/// Optimizers whose state is not that of Adam, the noise of NEFTune, orders by length, smoothed
/// labels, the running mean of BCO, the gold responses of TPO, and rows that are streamed.
#[test]
fn optimizers_noise_bco_tpo_and_streams_give_the_same_bits() {
    if !can_run_ranks() {
        return;
    }
    let runs: [(&str, &[&str]); 7] = [
        (
            "sft",
            &[
                "optim=adafactor",
                "neftune_noise_alpha=5",
                "label_smoothing_factor=0.1",
                "max_tokens_per_microbatch=300",
            ],
        ),
        ("sft", &["optim=lion_32bit", "train_sampling_strategy=group_by_length"]),
        ("dpo", &["optim=sgd", "optim_args=momentum=0.9", "neftune_noise_alpha=5"]),
        ("kto", &["loss_type=bco", "optim=adafactor"]),
        ("tpo", &["loss_type=tpo-l", "beta=2"]),
        ("sft", &["streaming=true"]),
        ("dpo", &["streaming=true"]),
    ];
    for (index, (stage, keys)) in runs.into_iter().enumerate() {
        let world = unequal_world(&format!("ranks-others-{index}"));
        let data = if stage == "sft" { "sft" } else { "dpo" };
        let recipe = world.join(format!("{data}-unequal.yaml"));
        let more = [
            "max_steps=4",
            "logging_steps=1",
            "save_strategy=steps",
            "save_steps=2",
            "weight_decay=0.1",
            "max_grad_norm=0.5",
        ];
        let mut more = settings(&more);
        more.extend(settings(keys));
        let run = Run { recipe: &recipe, stage, rows: 2, micro_batches: 4, more };
        run.assert_same_bits(&world, &[1, 2, 4]);
    }
}

/// Adapters with dropout, modules that are trained whole, and a base of 4 bits. The ranks share the
/// state of the trained weights only.
#[test]
fn adapters_with_dropout_give_the_same_bits() {
    if !can_run_ranks() {
        return;
    }
    let kinds = [("none", "null", "false"), ("some", "[embed_tokens, norm]", "false")];
    for (name, saved, four_bits) in kinds.into_iter().chain([("four-bits", "null", "true")]) {
        let world = world(&format!("ranks-lora-{name}"));
        let recipe = world.join("sft.yaml");
        let base = format!("model_name_or_path={}", world.join("base").display());
        let saved = format!("lora_modules_to_save={saved}");
        let four_bits = format!("load_in_4bit={four_bits}");
        let more = [
            &base,
            &four_bits,
            "use_peft=true",
            "lora_dropout=0.1",
            "lora_target_modules=all-linear",
            &saved,
            "max_steps=6",
            "logging_steps=1",
            "save_strategy=steps",
            "save_steps=3",
            "eval_strategy=no",
        ];
        let more = settings(&more);
        let run = Run { recipe: &recipe, stage: "sft", rows: 2, micro_batches: 4, more };
        run.assert_same_bits(&world, &[1, 2, 4]);
    }
}

/// Sparse experts. The load-balancing loss is that of each micro-batch, whichever rank computes it.
#[test]
fn experts_give_the_same_bits() {
    if !can_run_ranks() {
        return;
    }
    let world = unequal_world("ranks-experts");
    let mixtral = json!({"model_type": "mixtral", "num_local_experts": 5,
        "num_experts_per_tok": 2, "max_position_embeddings": 512});
    let base = format!("model_name_or_path={}", family_folder(&world, mixtral).display());
    for stage in ["sft", "dpo"] {
        let recipe = world.join(format!("{stage}-unequal.yaml"));
        let more = [
            &base,
            "router_aux_loss_coef=0.1",
            "max_steps=4",
            "logging_steps=1",
            "save_strategy=steps",
            "save_steps=2",
            "eval_strategy=no",
        ];
        let run = Run { recipe: &recipe, stage, rows: 2, micro_batches: 4, more: settings(&more) };
        run.assert_same_bits(&world, &[1, 2, 4]);
    }
}

#[test]
fn bfloat16_with_sharded_master_weights_gives_the_same_bits() {
    if !can_run_ranks() {
        return;
    }
    let world = world("ranks-bf16");
    let recipe = world.join("sft.yaml");
    let base = format!("model_name_or_path={}", world.join("base").display());
    let more = [
        &base,
        "bf16=true",
        "max_steps=4",
        "save_strategy=steps",
        "save_steps=2",
        "eval_strategy=no",
    ];
    let run =
        Run { recipe: &recipe, stage: "sft", rows: 2, micro_batches: 4, more: settings(&more) };
    run.assert_same_bits(&world, &[1, 2, 4]);
}

#[test]
fn a_real_model_gives_the_same_bits() {
    if !can_run_ranks() {
        return;
    }
    let (Some(model), Some(chats), Some(pairs)) = (
        asset("models/stories260k"),
        asset("data/ultrachat_200k_like"),
        asset("data/ultrafeedback_binarized_like"),
    ) else {
        return;
    };
    let world = scratch("ranks-stories260k");
    let recipes = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes/stories260k");
    let mut more = settings(&TWENTY_STEPS);
    more.extend(settings(&[
        "max_eval_samples=16",
        "max_length=128",
        "max_train_samples=200",
        "report_to=none",
    ]));
    let data = |folder: &Path| format!("--dataset_mixer={{\"{}\": 1.0}}", folder.display());
    let mut sft = Run {
        recipe: &recipes.join("sft.yaml"),
        stage: "sft",
        rows: 1,
        micro_batches: 16,
        more: more.clone(),
    };
    sft.more.extend([data(&chats), format!("--model_name_or_path={}", model.display())]);
    sft.assert_same_bits(&world, &[1, 2, 4, 16]);
    let mut dpo =
        Run { recipe: &recipes.join("dpo.yaml"), stage: "dpo", rows: 1, micro_batches: 16, more };
    let policy = world.join("sft-on-1");
    dpo.more.extend([data(&pairs), format!("--model_name_or_path={}", policy.display())]);
    dpo.assert_same_bits(&world, &[1, 2, 4, 16]);
}

#[test]
fn an_evaluation_gives_the_same_bits_on_1_and_2_ranks() {
    if !can_run_ranks() {
        return;
    }
    let world = world("ranks-evaluate");
    let tasks = world.join("tasks");
    std::fs::create_dir_all(&tasks).unwrap();
    let row = |index: usize| {
        let question = format!("What color is thing {index}?");
        json!({"question": question, "choices": ["red", "It is blue.", "green and yellow"]})
    };
    let rows: String = (0..40).map(|index| format!("{}\n", row(index))).collect();
    std::fs::write(tasks.join("rows.jsonl"), rows).unwrap();
    let task = "task: own\ndataset_path: json\ndataset_kwargs: {data_files: {test: rows.jsonl}}\n\
                test_split: test\noutput_type: multiple_choice\ndoc_to_text: \"{{question}}\"\n\
                doc_to_choice: \"{{choices}}\"\ndoc_to_target: 1\n";
    std::fs::write(tasks.join("own.yaml"), task).unwrap();
    let outs = [1, 2].map(|ranks| {
        let out = world.join(format!("evaluated-on-{ranks}"));
        let mut job = job(ranks);
        job.args(["evaluate".into(), world.join("base").display().to_string()]);
        job.args(["--tasks", "own", "--batch-tokens", "100", "--quiet", "--include_path"]);
        job.arg(&tasks).arg("--out").arg(&out);
        let output = finish(&mut job);
        assert!(output.status.success(), "{ranks} rank(s): {}", text(&output));
        let read = |name: &str| std::fs::read_to_string(out.join(name)).unwrap();
        let results: Value = serde_json::from_str(&read("results.json")).unwrap();
        (read("samples_own.jsonl"), results["results"].clone())
    });
    assert_eq!(outs[0], outs[1]);
}
