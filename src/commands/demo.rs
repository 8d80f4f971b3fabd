//! `favonius demo`: a small data set, SFT and DPO on it, and a summary of what changed.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use anyhow::{Context, bail};

use super::ending::Ending;
use super::model_options::PlaceArguments;
use super::run::run_stages;
use super::signals::stop_flag;
use crate::data::Message;
use crate::eval::{BATCH_TOKENS, Definition, FEWSHOT_SEED};
use crate::parallel::Ranks;
use crate::parallel::environment::Place;
use crate::recipe::Pipeline;
use crate::report::screen::Screen;
use crate::run::evaluation::{Target, TaskChoice, evaluate};
use crate::run::{self, recipes_of};
use crate::toy::world::DemoWorld;
use crate::train::event::LogRow;
use crate::train::state::TrainerState;

const SEED: u64 = 42;
const ANSWER_TOKENS: usize = 60;

/// Writes the data set into `out`, trains on it, and prints the summary.
pub fn run(out: &Path, quiet: bool, place: Place) -> anyhow::Result<Ending> {
    if place.world > 1 {
        bail!("the demo runs on one rank; start it without mpirun, srun or torchrun");
    }
    let screen = Screen::detect(quiet);
    let world = crate::toy::world::write(out, SEED)?;
    screen.line(&format!(
        "a small world is in {}: chats, preference pairs, a tokenizer, a tiny Mistral from scratch",
        world.root.display()
    ))?;
    let recipes = recipes_of(&Pipeline::load(&world.pipeline)?, &[])?;
    if run_stages(recipes, &screen, &*stop_flag()?, &Ranks::one())? == Ending::Interrupted {
        return Ok(Ending::Interrupted);
    }
    let text = picture(&world)?;
    std::fs::write(world.root.join("picture.txt"), &text)?;
    screen.line(&text)?;
    Ok(Ending::Done)
}

/// Held-out metrics of both stages, and the answers of base, SFT and DPO model to the same
/// questions.
fn picture(world: &DemoWorld) -> anyhow::Result<String> {
    let (sft, dpo) = (world.root.join("sft"), world.root.join("dpo"));
    let mut text = String::from("\nheld-out loss and rewards\n");
    for (name, folder) in [("SFT", &sft), ("DPO", &dpo)] {
        let state = TrainerState::read(&folder.join("trainer_state.json"))?;
        for row in state.log_history.iter().filter(|row| row.get("eval_loss").is_some()) {
            text.push_str(&format!("  {name}  epoch {:<4}{}\n", row.epoch, held_out(row)));
        }
    }
    let models = [("base", &world.base_model), ("SFT", &sft), ("DPO", &dpo)];
    text.push_str("\naccuracy on held-out questions: right or wrong, good or bad manners\n");
    text.push_str(&scores(world, &models)?);
    text.push_str("\nthe same questions, never seen in training\n");
    let answers = models.map(|(_, folder)| answers(folder, &world.questions));
    let [base, sft, dpo] = answers;
    let answers = [base?, sft?, dpo?];
    for (index, question) in world.questions.iter().enumerate() {
        text.push_str(&format!("  {question}\n"));
        for ((name, _), answers) in models.iter().zip(&answers) {
            text.push_str(&format!("    {name:<4}  {}\n", answers[index]));
        }
    }
    Ok(text)
}

/// A line for each model with its scores on the tasks of the demo.
fn scores(world: &DemoWorld, models: &[(&str, &PathBuf); 3]) -> anyhow::Result<String> {
    let choice = TaskChoice {
        tasks: world.task_names.clone(),
        definition: Definition::LmEval,
        limit: None,
        num_fewshot: None,
        seed: FEWSHOT_SEED,
        data: None,
        include_path: Some(world.tasks.clone()),
        apply_chat_template: true,
        fewshot_as_multiturn: false,
        batch_tokens: BATCH_TOKENS,
    };
    let (ranks, stop) = (Ranks::one(), AtomicBool::new(false));
    let context = run::Context { ranks: &ranks, stop: &stop };
    let mut text = String::new();
    for (name, folder) in models {
        let model = folder.display().to_string();
        let chat = PlaceArguments::default().load(&model)?;
        let results = world.root.join("eval").join(name);
        let target = Target { name: &model, chat: &chat, device: "cpu", folder: &results };
        let Some(results) = evaluate(&target, &choice, &context, &mut ())? else { continue };
        let cells = results.lines.iter().filter_map(|line| {
            let score = line.scores.scores.first()?;
            let stderr = score.stderr.unwrap_or(0.0);
            Some(format!("  {} {:.3} ± {stderr:.3}", line.scores.alias, score.value))
        });
        text.push_str(&format!("  {name:<4}{}\n", cells.collect::<String>()));
    }
    Ok(text)
}

fn held_out(row: &LogRow) -> String {
    let names = [
        ("eval_loss", "loss"),
        ("eval_rewards/chosen", "rewards/chosen"),
        ("eval_rewards/rejected", "rewards/rejected"),
        ("eval_rewards/margins", "rewards/margins"),
        ("eval_rewards/accuracies", "rewards/accuracies"),
    ];
    let parts = names
        .iter()
        .filter_map(|(key, name)| row.get(key).map(|value| format!("  {name} {value:.4}")));
    parts.collect()
}

/// Greedy answers of the model in `folder`, each on one line.
fn answers(folder: &Path, questions: &[String]) -> anyhow::Result<Vec<String>> {
    let speaker = PlaceArguments::default().load(&folder.display().to_string())?;
    let chats =
        questions.iter().map(|question| speaker.chat_ids(&[Message::new("user", question)]));
    let chats = chats.collect::<Result<Vec<_>, _>>().context("cannot ask the model")?;
    let answers = speaker.answer_greedily(&chats, ANSWER_TOKENS)?;
    let on_one_line = |text: String| text.split_whitespace().collect::<Vec<_>>().join(" ");
    Ok(answers.into_iter().map(on_one_line).collect())
}
