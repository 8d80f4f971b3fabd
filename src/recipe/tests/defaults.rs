//! What a recipe becomes: defaults, spellings, notes.

use std::path::PathBuf;

use super::*;
use crate::recipe::{
    DeviceChoice, Dtype, Every, LogitsOver, LossType, Mixture, Optim, Packing, Quantization,
    Reporter, Resume, Sampling, Schedule, SgdSettings, SplitSize, TaskDefinition, Truncation,
    Warmup,
};

#[test]
fn defaults_are_trl_s() {
    let (s, d) = (good("", Stage::Sft), good("", Stage::Dpo));
    assert_eq!((s.train.learning_rate, d.train.learning_rate), (2e-5, 1e-6));
    for train in [&s.train, &d.train] {
        assert_eq!((train.num_train_epochs, train.max_steps, train.seed), (3.0, None, 42));
        assert_eq!((train.per_device_train_batch_size, train.per_device_eval_batch_size), (8, 8));
        assert_eq!(
            (train.logging, train.eval, train.save),
            (Every::Steps(10.0), Every::No, Every::Steps(500.0))
        );
        assert_eq!(
            (train.optim, train.lr_scheduler_type, train.warmup),
            (Optim::AdamW, Schedule::Linear, Warmup::Ratio(0.0))
        );
        assert_eq!((train.bf16, train.gradient_checkpointing, train.do_eval), (false, true, false));
        assert_eq!(
            (train.device, &train.resume_from_checkpoint),
            (DeviceChoice::Cpu, &Resume::Auto)
        );
        assert_eq!(train.gradient_reduce_dtype, Dtype::Auto);
        assert_eq!(train.train_sampling_strategy, Sampling::Random);
        assert_eq!(train.output_dir, PathBuf::from("trainer_output"));
        assert!(train.report_to.is_empty());
    }
    assert_eq!(s.model.dtype, Dtype::Float32);
    assert_eq!(
        (sft(&s).max_length, sft(&s).packing, sft(&s).packing_strategy),
        (Some(1024), false, Packing::Bfd)
    );
    let dpo = dpo(&d);
    assert_eq!(
        (dpo.beta, dpo.losses[0].loss_type, dpo.lengths.max_length, dpo.lengths.max_prompt_length),
        (0.1, LossType::Sigmoid, Some(1024), None)
    );
    assert_eq!(
        (dpo.lengths.truncation_mode, dpo.logits_over),
        (Truncation::KeepStart, LogitsOver::Response)
    );
}

#[test]
fn what_was_written_and_what_was_filled_in() {
    let recipe = good("max_seq_length: 2_048\nlearning_rate: 5e-7\n", Stage::Sft);
    let written: Vec<_> = recipe.written.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(
        written,
        [
            ("model_name_or_path", "m"),
            ("dataset_name", "d"),
            ("max_length", "2_048"),
            ("learning_rate", "5e-7")
        ]
    );
    assert_eq!((sft(&recipe).max_length, recipe.train.learning_rate), (Some(2048), 5e-7));
    let filled = |key: &str| recipe.filled.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str());
    assert_eq!(
        [
            filled("warmup_ratio"),
            filled("adam_epsilon"),
            filled("max_steps"),
            filled("dataset_train_split")
        ],
        [Some("0"), Some("1e-8"), Some("-1"), Some("train")]
    );
    assert_eq!((filled("max_length"), filled("learning_rate")), (None, None));
}

#[test]
fn every_default_is_reported_once() {
    let recipe = good("", Stage::Dpo);
    let mut keys: Vec<&String> = recipe.filled.iter().map(|(key, _)| key).collect();
    let count = keys.len();
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), count);
    assert!(count > 50, "{count}");
}

#[test]
fn spellings_of_numbers_and_words() {
    let recipe = good(
        "bf16: yes\neval_strategy: no\nsave_strategy: \"no\"\nweight_decay: \"0.1\"\nmax_steps: -1\noptim: rmsprop\n",
        Stage::Dpo,
    );
    assert!(recipe.train.bf16);
    assert_eq!((recipe.train.eval, recipe.train.save), (Every::No, Every::No));
    assert_eq!(
        (recipe.train.weight_decay, recipe.train.max_steps, recipe.train.optim),
        (0.1, None, Optim::RmsProp)
    );
    assert_eq!(dpo(&good("loss_type: [ipo]\n", Stage::Dpo)).losses[0].loss_type, LossType::Ipo);
    assert_eq!(sft(&good("max_length: null\n", Stage::Sft)).max_length, None);
    assert_eq!(good("device: cuda:3\n", Stage::Sft).train.device, DeviceChoice::Cuda(3));
    for (name, device) in [("tch:cuda", "tch:cuda:0"), ("tch:cuda:2", "tch:cuda:2")] {
        let read = good(&format!("device: {name}\n"), Stage::Sft).train.device;
        assert_eq!(read.to_string(), device);
    }
    let report_to =
        |value: &str| good(&format!("report_to: {value}\n"), Stage::Sft).train.report_to;
    let all = [
        Reporter::TensorBoard,
        Reporter::Wandb,
        Reporter::Trackio,
        Reporter::Mlflow,
        Reporter::Jsonl,
    ];
    assert_eq!((report_to("all"), report_to("[all]")), (all.to_vec(), all.to_vec()));
    assert_eq!((report_to("none"), report_to("[none]")), (vec![], vec![]));
    assert_eq!(report_to("[jsonl, wandb, jsonl]"), [Reporter::Jsonl, Reporter::Wandb]);
}

#[test]
fn losses_and_their_weights() {
    let losses = |more: &str| -> Vec<(LossType, f64)> {
        let recipe = good(more, Stage::Dpo);
        dpo(&recipe).losses.iter().map(|loss| (loss.loss_type, loss.weight)).collect()
    };
    assert_eq!(
        losses("loss_type: [sigmoid, sft]\nloss_weights: [1.0, 0.2]\n"),
        [(LossType::Sigmoid, 1.0), (LossType::Sft, 0.2)]
    );
    assert_eq!(
        losses("loss_type: [hinge, bco_pair]\n"),
        [(LossType::Hinge, 1.0), (LossType::BcoPair, 1.0)]
    );
    assert_eq!(losses("rpo_alpha: 0.5\n"), [(LossType::Sigmoid, 1.0), (LossType::Sft, 0.5)]);
}

#[test]
fn resuming() {
    let resume = |value: &str| {
        good(&format!("resume_from_checkpoint: {value}\n"), Stage::Sft).train.resume_from_checkpoint
    };
    assert_eq!(
        [resume("false"), resume("true"), resume("null")],
        [Resume::Fresh, Resume::Auto, Resume::Auto]
    );
    assert_eq!(resume("out/checkpoint-5"), Resume::Path(PathBuf::from("out/checkpoint-5")));
}

#[test]
fn warmup_steps_win_over_the_ratio() {
    let warmup = |more: &str| good(more, Stage::Sft).train.warmup;
    assert_eq!(warmup("warmup_ratio: 0.1\nwarmup_steps: 20\n"), Warmup::Steps(20));
    assert_eq!(warmup("warmup_ratio: 0.1\nwarmup_steps: 0\n"), Warmup::Ratio(0.1));
    assert_eq!(warmup("warmup_steps: 0.25\n"), Warmup::Ratio(0.25));
}

#[test]
fn evaluation_falls_back_on_the_logging_steps() {
    let eval = |more: &str| good(more, Stage::Sft).train.eval;
    assert_eq!(eval("eval_strategy: steps\nlogging_steps: 7\n"), Every::Steps(7.0));
    assert_eq!(eval("evaluation_strategy: steps\neval_steps: 0.2\n"), Every::Steps(0.2));
    assert_eq!(eval("eval_strategy: epoch\neval_steps: 100\n"), Every::Epoch);
}

#[test]
fn the_best_model_s_metric() {
    let best = |more: &str| {
        let train = good(
            &format!(
                "load_best_model_at_end: true\neval_strategy: epoch\nsave_strategy: epoch\n{more}"
            ),
            Stage::Dpo,
        )
        .train;
        (train.metric_for_best_model.unwrap_or_default(), train.greater_is_better)
    };
    assert_eq!(best(""), ("loss".to_owned(), Some(false)));
    assert_eq!(
        best("metric_for_best_model: rewards/accuracies\n"),
        ("rewards/accuracies".to_owned(), Some(true))
    );
    assert_eq!(
        best("metric_for_best_model: eval_rewards/accuracies\n"),
        ("rewards/accuracies".to_owned(), Some(true))
    );
    assert_eq!(best("metric_for_best_model: eval_loss\n"), ("loss".to_owned(), Some(false)));
    good(
        "load_best_model_at_end: true\neval_strategy: steps\neval_steps: 0.1\nsave_steps: 0.3\n",
        Stage::Sft,
    );
}

#[test]
fn notes_for_keys_without_a_meaning() {
    let recipe = good(
        "use_liger_kernel: true\nattn_implementation: sdpa\nreport_to: [comet_ml, tensorboard]\npush_to_hub: true\nlora_r: 8\ndataset_splits: [a]\n",
        Stage::Sft,
    );
    assert_eq!(
        recipe.notes,
        [
            "`lora_r` has no effect: it is for LoRA, and `use_peft` is false",
            "`report_to: comet_ml`: nothing is sent there; this program writes for tensorboard, wandb, trackio, mlflow, jsonl",
            "`dataset_splits` has no effect: it is read with `dataset_mixer` only",
            "`attn_implementation` has no effect: attention has only one implementation, without padding",
            "`use_liger_kernel` has no effect: the full logits are never stored",
        ]
    );
}

#[test]
fn four_bits() {
    assert_eq!(good("", Stage::Sft).model.quantization, None);
    let recipe = good("use_bnb_nested_quant: true\nload_in_4bit: false\n", Stage::Sft);
    assert_eq!(recipe.model.quantization, None);
    let note = "`use_bnb_nested_quant` has no effect: it is for `load_in_4bit: true`";
    assert_eq!(recipe.notes, [note]);
    let of = |lines: &str| good(lines, Stage::Dpo).model.quantization;
    assert_eq!(of("load_in_4bit: true\n"), Some(Quantization { nested: false }));
    let nested = "load_in_4bit: true\nuse_bnb_nested_quant: true\nbnb_4bit_quant_type: nf4\n\
                  torch_dtype: bfloat16\nbnb_4bit_compute_dtype: bfloat16\n";
    assert_eq!(of(nested), Some(Quantization { nested: true }));
}

#[test]
fn neutral_values_are_accepted_in_silence() {
    let neutral = "neftune_noise_alpha: null\nfp16: false\nlabel_smoothing_factor: 0.0\nuse_peft: false\nload_in_8bit: false\ndataset_kwargs:\n  add_special_tokens: false\n";
    assert!(good(neutral, Stage::Sft).notes.is_empty());
    let neutral = "f_divergence_type: reverse_kl\nsync_ref_model: no\nrpo_alpha: null\nloss_weights: [1.0]\nmodel_init_kwargs: {}\n";
    assert!(good(neutral, Stage::Dpo).notes.is_empty());
}

#[test]
fn lora_has_trls_defaults() {
    let recipe = good("use_peft: true\n", Stage::Dpo);
    let lora = recipe.model.lora.expect("an adapter");
    assert_eq!((lora.lora_r, lora.lora_alpha, lora.lora_dropout), (16, 32.0, 0.05));
    assert!(lora.lora_target_modules.is_empty() && lora.lora_modules_to_save.is_empty());
    assert!(!lora.use_rslora && !recipe.model.keeps_dropout);
    let kept = good("use_peft: true\ndisable_dropout: false\n", Stage::Dpo);
    assert!(kept.model.keeps_dropout && good("use_peft: true\n", Stage::Sft).model.keeps_dropout);
    let one = good("use_peft: true\nlora_target_modules: all-linear\n", Stage::Sft);
    assert_eq!(one.model.lora.expect("an adapter").lora_target_modules, ["all-linear"]);
    assert!(good("use_peft: false\n", Stage::Sft).model.lora.is_none());
}

#[test]
fn templates_from_text_and_file() {
    let text = good("chat_template: \"{{ messages[0]['content'] }}\\n\"\n", Stage::Sft)
        .model
        .chat_template;
    assert_eq!(text.as_deref(), Some("{{ messages[0]['content'] }}\n"));
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("t.jinja"), "{{ x }}").expect("a file");
    let recipe = Recipe::parse(
        &format!("{LEAST}chat_template: t.jinja\n"),
        &folder.path().join("r.yaml"),
        Stage::Sft,
        &[],
    );
    assert_eq!(
        recipe.expect("a file beside the recipe").model.chat_template.as_deref(),
        Some("{{ x }}")
    );
    // A tokenizer folder gives its template and its EOS token, as in TRL.
    let config = r#"{"chat_template": "{{ y }}", "eos_token": {"content": "<|end|>"}}"#;
    std::fs::write(folder.path().join("tokenizer_config.json"), config).expect("a file");
    let text = format!("{LEAST}chat_template_path: {}\n", folder.path().display());
    let model = Recipe::parse(&text, Path::new("r.yaml"), Stage::Sft, &[]).expect("good").model;
    assert_eq!(model.chat_template.as_deref(), Some("{{ y }}"));
    assert_eq!(model.eos_token.as_deref(), Some("<|end|>"));
}

#[test]
fn three_schemas_of_data() {
    let mixture =
        |data: &str| match parse(&format!("model_name_or_path: m\n{data}"), Stage::Dpo, &[]) {
            Ok(recipe) => recipe.data.mixture,
            Err(errors) => panic!("{errors}"),
        };
    let Mixture::Mixer { train, test, shuffle } = mixture(
        "dataset_mixer: {a/b: 0.5, c.d: 1}\ndataset_splits: [train_x, train_y, test_x]\ndataset_configs: [one, two]\n",
    ) else {
        panic!()
    };
    let shown: Vec<_> = train
        .iter()
        .map(|s| (s.id.as_str(), s.split.as_str(), s.fraction, s.config.as_deref().unwrap_or("")))
        .collect();
    assert_eq!(
        shown,
        [
            ("a/b", "train_x", 0.5, "one"),
            ("c.d", "train_x", 1.0, "two"),
            ("a/b", "train_y", 0.5, "one"),
            ("c.d", "train_y", 1.0, "two")
        ]
    );
    assert_eq!((test.len(), shuffle), (2, true));

    let Mixture::Pooled { sets, seed, test_split_size } = mixture(
        "dataset_mixture:\n  datasets:\n  - {id: a, columns: [x, y], weight: 0.5}\n  - {path: b, name: c, columns: [y, x], weight: 0.25}\n  test_split_size: 0.1\n",
    ) else {
        panic!()
    };
    assert_eq!(
        (sets[0].fraction, sets[0].split.as_str(), sets[1].id.as_str(), sets[1].config.as_deref()),
        (0.5, "train", "b", Some("c"))
    );
    assert_eq!((seed, test_split_size), (0, Some(SplitSize::Share(0.1))));

    let Mixture::Named { train, test } =
        mixture("dataset_name: a\ndataset_config: c\ndataset_train_split: t\n")
    else {
        panic!()
    };
    assert_eq!((train.split.as_str(), train.config.as_deref(), test), ("t", Some("c"), None));
    let Mixture::Named { test, .. } = mixture("dataset_name: a\neval_strategy: epoch\n") else {
        panic!()
    };
    assert_eq!(test.map(|spec| spec.split), Some("test".to_owned()));
}

#[test]
fn the_upload_is_off_where_nobody_asks_for_it() {
    let recipe = good("hub_model_id: mine\nhub_strategy: every_save\n", Stage::Sft);
    assert_eq!((recipe.train.push_to_hub, recipe.notes.len()), (None, 0));
    assert_eq!(recipe.train.hub_model_id.as_deref(), Some("mine"));
}

#[test]
fn the_upload_keeps_its_token_to_itself() {
    let text = "hub_model_id: me/mine\nhub_private_repo: yes\nhub_model_revision: v1\nhub_token: secret\nhub_always_push: true\npush_to_hub: true\n";
    let recipe = good(text, Stage::Dpo);
    let push = recipe.train.push_to_hub.as_ref().unwrap();
    assert_eq!((push.private, push.revision.as_deref()), (Some(true), Some("v1")));
    assert_eq!(push.token.as_ref().unwrap().0, "secret");
    assert_eq!(
        recipe.notes,
        ["`hub_always_push` has no effect: the model is uploaded once, at the end"]
    );
    let shown = format!("{recipe:?}{}", serde_json::to_string(&recipe).unwrap());
    assert!(shown.contains("hub_token") && !shown.contains("secret"), "{shown}");
    let error = push.asked_at.error("no".to_owned(), None).to_string();
    assert_eq!(error, "r.yaml:8:14: no\n    push_to_hub: true\n                 ^^^^");
}

#[test]
fn an_owner_is_named_with_the_model() {
    let error = bad("push_to_hub_organization: we\n", Stage::Sft);
    assert!(error.contains("help: write `hub_model_id: organization/name`"), "{error}");
}

#[test]
fn tasks_are_a_list_or_a_text() {
    let tasks = |more: &str| good(more, Stage::Dpo).evaluation.map(|evaluation| evaluation.tasks);
    assert_eq!(tasks(""), None);
    assert_eq!(tasks("eval_tasks: none\neval_tasks_limit: 5\n"), None);
    let expected = Some(vec!["mmlu".to_owned(), "gsm8k".to_owned()]);
    assert_eq!(tasks("eval_tasks: mmlu, gsm8k\n"), expected);
    assert_eq!(tasks("eval_tasks: [mmlu, gsm8k]\n"), expected);
    let all = good("eval_tasks: drop\neval_tasks_definition: leaderboard\n", Stage::Sft);
    assert_eq!(all.evaluation.unwrap().definition, TaskDefinition::Leaderboard);
}

#[test]
fn optimizers_have_the_names_of_transformers() {
    let of = |lines: &str| {
        let recipe = good(lines, Stage::Sft);
        (recipe.train.optim, recipe.train.sgd, recipe.notes)
    };
    let none = SgdSettings::default();
    for (name, optim) in [
        ("adamw_torch_fused", Optim::AdamW),
        ("rmsprop_bnb", Optim::RmsProp),
        ("adagrad", Optim::Adagrad),
        ("sgd", Optim::Sgd),
        ("lion", Optim::Lion),
        ("adafactor", Optim::Adafactor),
    ] {
        assert_eq!(of(&format!("optim: {name}\n")), (optim, none, vec![]), "{name}");
    }
    assert_eq!(of("adafactor: true\n").0, Optim::Adafactor);
    let notes = vec![
        "`optim: paged_lion_8bit` is Lion with 32-bit state in ordinary memory here".to_owned(),
    ];
    assert_eq!(of("optim: paged_lion_8bit\n"), (Optim::Lion, none, notes));
    let sgd = of("optim: sgd\noptim_args: momentum=0.9, nesterov=true\n").1;
    assert_eq!(sgd, SgdSettings { momentum: 0.9, dampening: 0.0, nesterov: true });
    let notes = vec!["`optim_args` has no effect: only `optim: sgd` reads it".to_owned()];
    assert_eq!(of("optim_args: momentum=0.9\n"), (Optim::AdamW, none, notes));
}

#[test]
fn regularization_and_order_of_rows() {
    let recipe = good(
        "neftune_noise_alpha: 5\nlabel_smoothing_factor: 0.1\nshuffle_dataset: true\n\
         group_by_length: true\n",
        Stage::Sft,
    );
    assert_eq!(recipe.train.neftune_noise_alpha, Some(5.0));
    assert_eq!(recipe.train.train_sampling_strategy, Sampling::GroupByLength);
    let settings = sft(&recipe);
    assert_eq!((settings.label_smoothing_factor, settings.shuffle_dataset), (0.1, true));
    let dft = good("loss_type: dft\nlabel_smoothing_factor: 0.1\n", Stage::Sft);
    assert_eq!(
        dft.notes,
        ["`label_smoothing_factor` has no effect: only `loss_type: nll` reads it"]
    );
    let dpo = good("label_smoothing_factor: 0.1\n", Stage::Dpo);
    assert_eq!(
        dpo.notes,
        ["`label_smoothing_factor` has no effect: as in TRL, only SFT reads it; DPO and CPO have \
          `label_smoothing`"]
    );
}

#[test]
fn the_mixture_of_trls_scripts() {
    let read = |data: &str| match parse(&format!("model_name_or_path: m\n{data}"), Stage::Sft, &[])
    {
        Ok(recipe) => recipe,
        Err(errors) => panic!("{errors}"),
    };
    let recipe = read(
        "seed: 7\ntest_split_size: 0.1\ndatasets:\n\
         - {path: a, name: c, data_dir: x, columns: [messages], fraction: 3}\n\
         - path: json\n  split: extra\n  fraction: 1\n  data_files: {extra: [one.jsonl, two.jsonl]}\n",
    );
    let Mixture::Listed { sets, fractions, seed, test_split_size } = recipe.data.mixture else {
        panic!()
    };
    assert_eq!((fractions, seed), (Some(vec![3.0, 1.0]), 7));
    assert_eq!(test_split_size, Some(SplitSize::Share(0.1)));
    assert_eq!((sets[0].config.as_deref(), sets[0].data_dir.as_deref()), (Some("c"), Some("x")));
    assert_eq!((sets[0].split.as_str(), sets[1].split.as_str()), ("train", "extra"));
    let files = vec!["one.jsonl".to_owned(), "two.jsonl".to_owned()];
    assert_eq!(sets[1].data_files, [("extra".to_owned(), files)]);
    let recipe = read("dataset_name: b\ndatasets: [{path: a, data_files: \"*.jsonl\"}]\n");
    assert_eq!(recipe.notes, ["`dataset_name` has no effect: as in TRL, `datasets` is read"]);
    let Mixture::Listed { sets, fractions, .. } = recipe.data.mixture else { panic!() };
    assert_eq!(sets[0].data_files, [("train".to_owned(), vec!["*.jsonl".to_owned()])]);
    assert_eq!(fractions, None);
}
