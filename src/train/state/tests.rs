use super::*;

/// A file that transformers 5.23 wrote (shortened to two rows), byte for byte.
const WRITTEN: &str = r#"{
  "best_global_step": null,
  "best_metric": null,
  "best_model_checkpoint": null,
  "epoch": 2.0,
  "eval_steps": 2,
  "global_step": 4,
  "is_hyper_param_search": false,
  "is_local_process_zero": true,
  "is_world_process_zero": true,
  "log_history": [
    {
      "entropy": 10.37028694152832,
      "epoch": 0.5,
      "grad_norm": 0.6989232897758484,
      "learning_rate": 5e-07,
      "logits/chosen": -7.516170929496487e-05,
      "logits/rejected": -0.0001,
      "loss": 0.6931471824645996,
      "num_tokens": 52.0,
      "rewards/accuracies": 0.0,
      "step": 1
    },
    {
      "epoch": 2.0,
      "step": 4,
      "total_flos": 694428672.0,
      "train_loss": 0.6799562722444534,
      "train_runtime": 0.6965
    }
  ],
  "logging_steps": 1,
  "max_steps": 4,
  "num_input_tokens_seen": 0,
  "num_train_epochs": 2,
  "save_steps": 0.25,
  "stateful_callbacks": {
    "TrainerControl": {
      "args": {
        "should_epoch_stop": false,
        "should_evaluate": false,
        "should_log": false,
        "should_save": true,
        "should_training_stop": true
      },
      "attributes": {}
    }
  },
  "total_flos": 694428672.0,
  "train_batch_size": 2,
  "trial_name": null,
  "trial_params": null
}
"#;

fn read_text(text: &str) -> Result<TrainerState, StateError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trainer_state.json");
    std::fs::write(&path, text).unwrap();
    TrainerState::read(&path)
}

fn row(values: &[(&str, f64)]) -> LogRow {
    LogRow {
        step: 1,
        epoch: 0.5,
        values: values.iter().map(|&(name, value)| (name.into(), value)).collect(),
    }
}

#[test]
fn a_file_of_transformers_comes_back_byte_for_byte() {
    let state = read_text(WRITTEN).unwrap();
    assert_eq!(state.to_text(), WRITTEN);
    assert_eq!(state.save_steps, Interval::Real(0.25));
    assert_eq!(state.log_history[0].get("learning_rate"), Some(5e-7));
    assert_eq!(state.log_history[1].step, 4);
}

#[test]
fn the_control_has_the_form_of_transformers() {
    let mut state = read_text(WRITTEN).unwrap();
    state.stateful_callbacks.clear();
    state.set_control(Control {
        should_save: true,
        should_training_stop: true,
        ..Control::default()
    });
    assert_eq!(state.to_text(), WRITTEN);
}

#[test]
fn what_is_not_finite_survives() {
    let words =
        row(&[("a", f64::NAN), ("b", f64::INFINITY), ("c", f64::NEG_INFINITY), ("d", -0.0)]);
    let mut state = TrainerState {
        log_history: vec![words],
        best_metric: Some(f64::NAN),
        ..Default::default()
    };
    state.best_model_checkpoint = Some("NaN \"Infinity\" \\ é 🪁 \u{1}".into());
    let text = state.to_text();
    for line in [
        "\"a\": NaN,",
        "\"b\": Infinity,",
        "\"c\": -Infinity,",
        "\"d\": -0.0,",
        "\"best_metric\": NaN,",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
    assert!(text.contains(r#""NaN \"Infinity\" \\ \u00e9 \ud83e\ude81 \u0001""#), "{text}");
    let back = read_text(&text).unwrap();
    assert_eq!(back.to_text(), text);
    assert!(back.log_history[0].get("a").unwrap().is_nan());
    assert_eq!(back.log_history[0].get("c"), Some(f64::NEG_INFINITY));
    assert_eq!(back.best_model_checkpoint, state.best_model_checkpoint);
}

#[test]
fn every_bit_of_a_float_survives() {
    // Numbers over the whole range, from a fixed linear congruential generator.
    let mut bits: u64 = 0x9e37_79b9_7f4a_7c15;
    for _ in 0..2000 {
        bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let number = f64::from_bits(bits);
        let back = json::as_float(&json::parse(&json::float_repr(number)).unwrap()).unwrap();
        assert!(
            back.to_bits() == number.to_bits() || (back.is_nan() && number.is_nan()),
            "{number:e} → {back:e}"
        );
    }
}

#[test]
fn floats_have_pythons_form() {
    let forms = [
        (0.0, "0.0"),
        (1.0, "1.0"),
        (5e-7, "5e-07"),
        (1e-5, "1e-05"),
        (0.0001, "0.0001"),
        (1.5e-10, "1.5e-10"),
        (1e15, "1000000000000000.0"),
        (1e16, "1e+16"),
        (1.25e100, "1.25e+100"),
        (123456789.125, "123456789.125"),
        (f64::MIN_POSITIVE, "2.2250738585072014e-308"),
    ];
    for (number, form) in forms {
        assert_eq!(json::float_repr(number), form);
    }
}

#[test]
fn older_files_with_fewer_fields_are_read() {
    let state = read_text(r#"{"epoch": 1, "global_step": 7, "something_new": 3}"#).unwrap();
    assert_eq!((state.epoch, state.global_step, state.best_global_step), (1.0, 7, None));
}

#[test]
fn a_wrong_field_is_named() {
    let cases = [
        (r#"{"global_step": "seven"}"#, "global_step should be a whole number, found \"seven\""),
        (
            r#"{"log_history": [{"loss": 1.0}, {"loss": [1]}]}"#,
            "log_history[1].loss should be a number, found [1]",
        ),
        (r#"{"epoch": null}"#, "epoch should be a number, found null"),
        ("[]", "the file should be an object, found []"),
        ("{\"epoch\": 1.0,\n", "is not valid JSON"),
    ];
    for (text, message) in cases {
        let error = read_text(text).unwrap_err().to_string();
        assert!(error.contains(message) && error.contains("trainer_state.json"), "{error}");
    }
}

#[test]
fn words_in_the_rows_of_others_are_passed_over() {
    let text = r#"{"global_step": 3, "log_history": [
        {"step": 1, "epoch": 0.5, "loss": 1.0, "grad_norm": null, "note": "warm", "logps": NaN},
        {"step": null, "loss": 2.0}, {"loss": 3.0}, "a row",
        {"step": 3, "epoch": null, "loss": 0.5}]}"#;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trainer_state.json");
    std::fs::write(&path, text).unwrap();
    let state = TrainerState::read_foreign(&path).unwrap();
    let steps: Vec<u64> = state.log_history.iter().map(|row| row.step).collect();
    assert_eq!((state.global_step, steps), (3, vec![1, 3]));
    let first = &state.log_history[0];
    assert_eq!(
        (first.get("loss"), first.get("grad_norm"), first.get("note")),
        (Some(1.0), None, None)
    );
    assert!(first.get("logps").unwrap().is_nan());
    let error = TrainerState::read(&path).unwrap_err().to_string();
    assert!(error.contains("log_history[0].grad_norm should be a number, found null"), "{error}");
    std::fs::write(&path, r#"{"global_step": "three"}"#).unwrap();
    assert!(TrainerState::read_foreign(&path).is_err());
}
