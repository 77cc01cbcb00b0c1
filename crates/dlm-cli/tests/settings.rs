//! Settings as a user meets them: real files and variables.

#![allow(clippy::result_large_err)] // figment::Jail's closures return figment's error

use dlm_cli::settings::{Bf16, Compat, PreparedPath, PreparedPaths, Sources, resolve, resolve_file};
use dlm_diffusion::{LossNormalization, PackingIsolation, ScheduleName};
use figment::Jail;
use std::path::PathBuf;

fn profile(name: &str) -> Sources {
    Sources { profile: Some(name.to_owned()), ..Sources::default() }
}

fn file(path: &str) -> Sources {
    Sources { files: vec![PathBuf::from(path)], ..Sources::default() }
}

/// The message of the error and its help.
fn complaint(sources: &Sources) -> String {
    let error = resolve(sources).unwrap_err();
    format!("{error}\n{}", error.help().unwrap_or_default())
}

#[test]
fn each_layer_is_stronger_than_the_one_before_it() {
    Jail::expect_with(|jail| {
        let rate = |sources: &Sources| {
            let resolved = resolve(sources).unwrap();
            (resolved.settings.learning_rate, resolved.origin("learning_rate"))
        };
        assert_eq!(rate(&Sources::default()), (1e-4, "defaults".to_owned()));
        assert_eq!(rate(&profile("sft")), (2e-5, "profile sft".to_owned()));
        jail.create_file("dlm.toml", "[default]\nlearning_rate = 3e-5\n[sft]\nlearning_rate = 4e-5\n")?;
        assert_eq!(rate(&profile("pretrain")), (3e-5, "dlm.toml [default]".to_owned()));
        assert_eq!(rate(&profile("sft")), (4e-5, "dlm.toml [sft]".to_owned()));
        jail.create_file("a.toml", "learning_rate = 5e-5")?;
        jail.create_file("b.yaml", "learning_rate: 6e-5")?;
        let mut sources = profile("sft");
        sources.files.push("a.toml".into());
        assert_eq!(rate(&sources), (5e-5, "a.toml".to_owned()));
        sources.files.push("b.yaml".into());
        assert_eq!(rate(&sources), (6e-5, "b.yaml".to_owned()));
        jail.set_env("DLM_LEARNING_RATE", "7e-5");
        assert_eq!(rate(&sources), (7e-5, "DLM_LEARNING_RATE".to_owned()));
        sources.assignments.push("learning_rate=8e-5".to_owned());
        assert_eq!(rate(&sources), (8e-5, "--set".to_owned()));
        sources.flags.push(("--learning-rate", "learning_rate", "9e-5".to_owned()));
        assert_eq!(rate(&sources), (9e-5, "--learning-rate".to_owned()));
        Ok(())
    });
}

#[test]
fn variables_reach_into_the_diffusion_block_and_reserved_ones_are_left_alone() {
    Jail::expect_with(|jail| {
        jail.set_env("DLM_DIFFUSION__EPS", "1e-2");
        jail.set_env("DLM_DIFFUSION__NEVER_MASK", "bos,eos");
        jail.set_env("DLM_WANDB_NAME", "007");
        jail.set_env("DLM_GOLDEN", "elsewhere");
        jail.set_env("DLM_CUDA", "1");
        jail.set_env("DLM_LOG", "debug");
        let settings = resolve(&Sources::default()).unwrap().settings;
        assert_eq!(settings.diffusion.eps, 0.01);
        assert_eq!(settings.diffusion.never_mask, ["bos", "eos"]);
        assert_eq!(settings.wandb_name.as_deref(), Some("007"));
        Ok(())
    });
}

#[test]
fn an_unknown_key_names_its_source_and_the_nearest_key() {
    Jail::expect_with(|jail| {
        jail.create_file("run.toml", "lerning_rate = 1e-4")?;
        insta::assert_snapshot!(complaint(&file("run.toml")), @r"
        `lerning_rate` in run.toml is not a setting
        did you mean `learning_rate`?
        ");
        jail.create_file("run.yaml", "diffusion:\n  noise_shedule: linear\n")?;
        insta::assert_snapshot!(complaint(&file("run.yaml")), @r"
        `diffusion.noise_shedule` in run.yaml is not a setting
        did you mean `diffusion.noise_schedule`?
        ");
        let assigned = Sources { assignments: vec!["eps=1".to_owned()], ..Sources::default() };
        insta::assert_snapshot!(complaint(&assigned), @r"
        `eps` in --set is not a setting
        did you mean `diffusion.eps`?
        ");
        jail.set_env("DLM_ZZZZZZZ", "1");
        insta::assert_snapshot!(complaint(&Sources::default()), @r"
        `zzzzzzz` in DLM_ZZZZZZZ is not a setting
        `dlm config show` lists every setting
        ");
        Ok(())
    });
}

#[test]
fn a_wrong_value_names_its_key_its_source_what_was_found_and_what_is_expected() {
    Jail::expect_with(|jail| {
        let texts = [
            "micro_batch_size: many",
            "max_steps: 0",
            "learning_rate: [1]",
            "learning_rate: true",
            "device: tpu",
            "optimizer: lion",
            "val_set_size: -1",
            "diffusion: linear",
            "diffusion: {eps: 1.5}",
            "diffusion: {eps: }",
            "diffusion: {noise_schedule: quadratic}",
            "diffusion: {noise_schedule: 0}",
            "diffusion: {mask_token_id: -5}",
            "diffusion: {never_mask: 7}",
            "bf16: perhaps",
            "fp16: true",
            "gradient_checkpointing: offload",
            "adapter: qlora",
            "lora_r: 0",
            "lora_dropout: 1",
            "peft_use_dora: true",
            "dataset_prepared_path: {path: data}",
            "dataset_prepared_path: [data, {path: more, weight: 2}]",
            "dataset_prepared_path: [{path: data, weight: 0}]",
            "dataset_prepared_path: [{path: data, wieght: 1}]",
            "dataset_prepared_path: [{weight: 1}]",
            "max_eval_samples: 0",
            "dataloader_prefetch_factor: -1",
            "a: b: c",
        ];
        let mut report = String::new();
        for text in texts {
            jail.create_file("run.yaml", text)?;
            report += &format!("{text}\n  {}\n", complaint(&file("run.yaml")).replace('\n', "\n  "));
        }
        insta::assert_snapshot!(report);
        Ok(())
    });
}

#[test]
fn prepared_data_is_one_folder_or_several_with_weights() {
    Jail::expect_with(|jail| {
        let shown = |text: &str| {
            let sources = Sources { assignments: vec![format!("dataset_prepared_path={text}")], ..Sources::default() };
            let resolved = resolve(&sources).unwrap();
            let entry = resolved.entries().into_iter().find(|entry| entry.key == "dataset_prepared_path").unwrap();
            (resolved.settings.dataset_prepared_path, entry.to_string())
        };
        let one = |path: &str, weight| PreparedPath { path: path.to_owned(), weight };
        assert_eq!(
            shown("a,b"),
            (Some(PreparedPaths(vec![one("a,b", None)])), "dataset_prepared_path = \"a,b\"  from --set".to_owned())
        );
        assert_eq!(
            shown("[\"a\", \"b\"]"),
            (
                Some(PreparedPaths(vec![one("a", None), one("b", None)])),
                "dataset_prepared_path = [\"a\", \"b\"]  from --set".to_owned()
            )
        );
        let (weighted, text) = shown("[{ path = \"a\", weight = 2 }, { path = \"b\", weight = \"0.5\" }]");
        assert_eq!(weighted, Some(PreparedPaths(vec![one("a", Some(2.0)), one("b", Some(0.5))])));
        assert_eq!(shown("").0, None);
        assert_eq!(shown("[]").0, None);
        // What is shown can be read again, as `settings.toml` of a run is.
        jail.create_file("again.toml", text.split("  from").next().unwrap())?;
        assert_eq!(resolve(&file("again.toml")).unwrap().settings.dataset_prepared_path, weighted);
        Ok(())
    });
}

#[test]
fn values_that_do_not_go_together_are_told_with_both_origins() {
    Jail::expect_with(|jail| {
        jail.create_file("run.toml", "[diffusion]\nmin_mask_ratio = 0.9")?;
        let mut sources = file("run.toml");
        sources.assignments.push("diffusion.max_mask_ratio=0.1".to_owned());
        let mut report = complaint(&sources);
        let texts = [
            "base_model = \"a\"\nmodel_preset = \"tiny\"",
            "save_strategy = \"epoch\"\nsave_steps = 10",
            "eval_steps = 5\nevals_per_epoch = 2",
            "warmup_steps = 5\nwarmup_ratio = 0.1",
            "adapter = \"lora\"\nlora_target_linear = true\nlora_target_modules = [\"q_proj\"]",
            "[diffusion]\nobjective = \"autoregressive\"\nautoregressive_weight = 0.5",
        ];
        for text in texts {
            jail.create_file("run.toml", text)?;
            report += &format!("\n{}", complaint(&file("run.toml")));
        }
        insta::assert_snapshot!(report);
        // A profile only proposes.
        let mut warmup = profile("sft");
        warmup.assignments.push("warmup_steps=5".to_owned());
        assert!(resolve(&warmup).is_ok());
        Ok(())
    });
}

#[test]
fn files_profiles_and_assignments_that_make_no_sense_are_told() {
    Jail::expect_with(|jail| {
        jail.create_file("bad.toml", "a = 1\nb = = 2\n")?;
        let assigned = Sources { assignments: vec!["learning_rate".to_owned()], ..Sources::default() };
        let mut complaints = vec![
            complaint(&file("absent.toml")),
            complaint(&file("settings.ini")),
            complaint(&file("bad.toml")),
            complaint(&profile("stf")),
            complaint(&assigned),
        ];
        for text in ["learning_rate = 1\n", "[other]\nlearning_rat = 1\n"] {
            jail.create_file("dlm.toml", text)?;
            complaints.push(complaint(&Sources::default()));
        }
        insta::assert_snapshot!(complaints.join("\n"));
        Ok(())
    });
}

/// A file as people write them for Axolotl's diffusion plugin.
const AXOLOTL: &str = "
base_model: models/smollm2
datasets:
  - path: some/instructions
    type: alpaca
val_set_size: 0.05
plugins:
  - axolotl.integrations.diffusion.DiffusionPlugin
diffusion:
  noise_schedule: cosine
  min_mask_ratio: 0.1
  max_mask_ratio: 0.9
  num_diffusion_steps: 64
  eps: 5e-4
  importance_weighting: true
  mask_token_id: 128002
output_dir: ./outputs/model-out
sequence_len: 512
sample_packing: true
gradient_accumulation_steps: 4
micro_batch_size: 2
num_epochs: 1
warmup_ratio: 0.1
optimizer: adamw_8bit
lr_scheduler: cosine
learning_rate: 1e-5
bf16: auto
tf32: true
gradient_checkpointing: true
resume_from_checkpoint:
sdp_attention: true
logging_steps: 1
save_strategy: epoch
evaluation_strategy: epoch
special_tokens:
  pad_token: \"<|end_of_text|>\"
wandb_project:
wandb_watch:
";

#[test]
fn an_axolotl_file_is_read_as_it_is_and_each_key_without_effect_is_listed_once() {
    Jail::expect_with(|jail| {
        jail.create_file("sft.yaml", AXOLOTL)?;
        let resolved = resolve_file("sft.yaml".as_ref()).unwrap();
        assert_eq!(resolved.settings.learning_rate, 1e-5);
        assert_eq!(resolved.settings.diffusion.noise_schedule, ScheduleName::Cosine);
        assert_eq!(resolved.settings.diffusion.eps, 5e-4);
        assert!(resolved.settings.gradient_checkpointing && resolved.settings.bf16 == Bf16::Auto);
        let mut ignored: Vec<_> = resolved.ignored.iter().map(|ignored| ignored.key.as_str()).collect();
        ignored.sort_unstable();
        let expected =
            ["datasets", "optimizer", "plugins", "sample_packing", "sdp_attention", "special_tokens", "tf32"];
        assert_eq!(ignored, expected);
        Ok(())
    });
}

#[test]
fn compat_reads_a_file_as_axolotl_does() {
    Jail::expect_with(|jail| {
        jail.create_file("sft.yaml", AXOLOTL)?;
        let mut sources = file("sft.yaml");
        sources.assignments = vec!["diffusion.compat=axolotl".to_owned(), "diffusion.never_mask=bos".to_owned()];
        let resolved = resolve(&sources).unwrap();
        let diffusion = &resolved.settings.diffusion;
        assert_eq!(diffusion.compat, Compat::Axolotl);
        assert_eq!(diffusion.noise_schedule, ScheduleName::Linear);
        assert_eq!((diffusion.min_mask_ratio, diffusion.max_mask_ratio), (None, None));
        assert_eq!(diffusion.loss_normalization, LossNormalization::Sequence);
        assert_eq!(resolved.settings.packing_isolation, PackingIsolation::Row);
        assert_eq!(resolved.origin("diffusion.noise_schedule"), "diffusion.compat = \"axolotl\"");
        assert!(resolved.ignored.iter().any(|ignored| ignored.key == "diffusion.noise_schedule"));
        // What Axolotl has no key for is still the user's to choose.
        assert_eq!(diffusion.never_mask, ["bos"]);
        Ok(())
    });
}

#[test]
fn resolved_settings_written_as_a_file_are_read_back_the_same() {
    Jail::expect_with(|jail| {
        let mut sources = profile("sft");
        sources.assignments = vec!["wandb_name=a \"quoted\" name".to_owned(), "save_total_limit=".to_owned()];
        let resolved = resolve(&sources).unwrap();
        jail.create_file("settings.toml", &resolved.to_toml())?;
        let again = resolve_file("settings.toml".as_ref()).unwrap();
        let mut expected = resolved.settings;
        assert_eq!(expected.save_total_limit, None);
        expected.save_total_limit = again.settings.save_total_limit; // TOML has no way to unset a default
        assert_eq!(again.settings, expected);
        Ok(())
    });
}

#[test]
fn every_setting_is_shown_with_its_origin() {
    Jail::expect_with(|jail| {
        jail.set_env("DLM_LEARNING_RATE", "2e-4");
        let resolved = resolve(&profile("pretrain")).unwrap();
        let shown: Vec<String> = resolved.entries().iter().map(ToString::to_string).collect();
        insta::assert_snapshot!(shown.join("\n"));
        Ok(())
    });
}

#[test]
fn adapter_settings_are_read_as_axolotl_writes_them_and_mean_nothing_without_an_adapter() {
    Jail::expect_with(|jail| {
        let text = "adapter: lora\nlora_r: 32\nlora_alpha: 16\nlora_dropout: 0.05\nlora_target_linear: true\n\
                    lora_target_modules:\nlora_modules_to_save:\n  - embed_tokens\n  - lm_head\npeft_use_rslora: true\n";
        jail.create_file("run.yaml", text)?;
        let resolved = resolve(&file("run.yaml")).unwrap();
        let settings = &resolved.settings;
        assert_eq!(settings.adapter, Some(dlm_cli::settings::Adapter::Lora));
        assert_eq!((settings.lora_r, settings.lora_alpha, settings.lora_dropout), (32, 16.0, 0.05));
        assert_eq!((settings.lora_target_linear, settings.peft_use_rslora), (Some(true), Some(true)));
        assert_eq!(settings.lora_modules_to_save, ["embed_tokens", "lm_head"]);
        assert!(settings.lora_target_modules.is_empty() && resolved.ignored.is_empty());

        jail.create_file("run.yaml", "adapter:\nlora_r: 32\nlora_target_modules: q_proj, v_proj\n")?;
        let resolved = resolve(&file("run.yaml")).unwrap();
        assert_eq!((resolved.settings.adapter, resolved.settings.lora_target_modules.len()), (None, 2));
        let ignored: Vec<&str> = resolved.ignored.iter().map(|ignored| ignored.key.as_str()).collect();
        assert_eq!(ignored, ["lora_r", "lora_target_modules"]);
        Ok(())
    });
}

#[test]
fn keys_of_the_diffusion_section_that_mean_nothing_beside_the_others_are_told() {
    let told = |assignments: &[&str]| {
        let assignments = assignments.iter().map(|assignment| format!("diffusion.{assignment}")).collect();
        let resolved = resolve(&Sources { assignments, ..Sources::default() }).unwrap();
        let keys = resolved.ignored.iter().map(|ignored| ignored.key.trim_start_matches("diffusion.").to_owned());
        keys.collect::<Vec<_>>()
    };
    let cases: &[(&[&str], &[&str])] = &[
        (&["last_block=whole", "block_start=noisy"], &["last_block", "block_start"]),
        (&["last_block=whole", "block_start=noisy", "block_length=4"], &[]),
        (&["cart_p=0.3"], &["cart_p"]),
        (&["cart_p=0.3", "loss_weight=cart"], &[]),
        (&["cart_p=0.3", "loss_weight=cart", "importance_weighting=false"], &["loss_weight", "cart_p"]),
        (&["loss_weight=elbo", "importance_weighting=true"], &[]),
        (
            &["objective=autoregressive", "masking=exact_count", "timesteps=independent", "min_mask_ratio=0.1"],
            &["masking", "timesteps", "min_mask_ratio"],
        ),
        (&["objective=autoregressive", "max_mask_ratio=0.9", "loss_weight=elbo"], &["max_mask_ratio", "loss_weight"]),
        (&["masking=exact_count", "timesteps=independent", "min_mask_ratio=0.1", "max_mask_ratio=0.9"], &[]),
        (
            &["generate_samples=false", "generation_steps=3", "generation_temperature=1"],
            &["generation_steps", "generation_temperature"],
        ),
        (&["generate_samples=true", "generation_steps=3"], &[]),
        (&["compat=axolotl", "objective=autoregressive"], &[]),
    ];
    Jail::expect_with(|_| {
        for (given, expected) in cases {
            assert_eq!(&told(given), expected, "{given:?}");
        }
        Ok(())
    });
}
