//! The steps on rows and texts in a plan: expressions where SQL can say it, nodes of ours where not.

use crate::{
    cut::{Cut, CutStage, OFFSET},
    decontaminate::{CONTAMINATION, Decontaminate, DecontaminateStage, Found, holds_text},
    error::{DataError, Result},
    exact_dedup::ExactDedupStage,
    functions::{sample_key, shuffle_key},
    hold::HoldStage,
    ledger::StepCounter,
    near_dedup::{NearDedup, NearDedupStage},
    normalize::Normalize,
    packing::require,
    pipeline::Pipeline,
    plan::{Lowering, ROW, name, planning},
    quality::{Quality, QualityStage},
    row_stages::{limit, row_number, tally},
    sample::Sample,
    scan::SourcesTable,
    source::{self, Source},
    sql,
    step::{Dedup, Shuffle},
    tokenize::INPUT_IDS,
};
use datafusion::{
    arrow::datatypes::Schema,
    catalog::TableProvider,
    dataframe::DataFrame,
    datasource::provider_as_source,
    logical_expr::{Expr, LogicalPlanBuilder, lit},
    prelude::SessionContext,
};
use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
};

/// The order in which rows came, while they are sorted in another.
pub(crate) const ORDER: &str = "__order";

impl Lowering<'_> {
    /// The expressions for all columns, ours among them.
    fn all_columns(&self) -> Vec<String> {
        self.schema().fields().iter().map(|field| field.name().clone()).collect()
    }

    pub(crate) fn rename(&mut self, names: &BTreeMap<String, String>) -> Result<()> {
        let schema = self.schema();
        names.keys().try_for_each(|old| require("rename", &schema, old))?;
        let columns = self.all_columns();
        let new = |old: &String| names.get(old).unwrap_or(old).clone();
        let renamed: Vec<String> = columns.iter().map(new).collect();
        if let Some(twice) = renamed.iter().enumerate().find(|(i, new)| renamed[..*i].contains(new)) {
            return Err(DataError::Sql {
                step: "rename".to_owned(),
                message: format!("two columns would be called `{}`", twice.1),
            });
        }
        let expressions = columns.iter().zip(renamed).map(|(old, new)| name(old).alias(new)).collect::<Vec<_>>();
        self.change("rename", |frame| frame.select(expressions))
    }

    pub(crate) fn map(&mut self, columns: &BTreeMap<String, String>) -> Result<()> {
        let parsed = columns.iter().map(|(column, expression)| {
            Ok((column.clone(), self.parse(&format!("map `{column}` ="), expression)?.alias(column)))
        });
        let mut parsed = parsed.collect::<Result<BTreeMap<String, Expr>>>()?;
        let old = self.all_columns();
        let mut expressions: Vec<Expr> =
            old.iter().map(|column| parsed.remove(column).unwrap_or_else(|| name(column))).collect();
        expressions.extend(parsed.into_values());
        self.change("map", |frame| frame.select(expressions))
    }

    pub(crate) fn sql(&mut self, query: &str) -> Result<()> {
        self.hold()?;
        let answer = sql::query(&self.frame, query)?;
        self.frame = answer.frame;
        if !answer.reads_all_once {
            self.ledger.forget();
        }
        let step = format!("sql `{query}`");
        // Names without the tables they came from; two of one name end here.
        let fields = self.schema().fields().clone();
        if let Some(twice) =
            fields.iter().enumerate().find(|(i, field)| fields[..*i].iter().any(|other| other.name() == field.name()))
        {
            return Err(DataError::Sql { step, message: format!("two columns are called `{}`", twice.1.name()) });
        }
        self.hold()?;
        if !answer.keeps_rows {
            self.add(row_number(ROW, &Schema::new(fields)))?;
            self.rows = Arc::new(self.rows.made_by(&self.label("sql")));
        }
        self.tally("sql")
    }

    pub(crate) fn limit(&mut self, rows: usize) -> Result<()> {
        self.ledger.forget();
        self.add(limit(rows, self.schema()))?;
        self.tally("limit")
    }

    pub(crate) fn sample(&mut self, sample: &Sample) -> Result<()> {
        let (columns, types) = self.compared("sample", &sample.on)?;
        let key = sample_key(types, sample.seed).call(columns.into_iter().map(|column| name(&column)).collect());
        if let Some(share) = sample.share {
            // The key is even over all 64-bit numbers.
            let bound = (share * 2f64.powi(64)) as u64;
            let condition = key.clone().lt(lit(bound));
            self.change("sample", |frame| frame.filter(condition))?;
        }
        if let Some(count) = sample.count {
            let all = self.all_columns();
            self.add(row_number(ORDER, &self.schema()))?;
            self.sort("sample", vec![key, name(ORDER)])?;
            self.add(limit(count, self.schema()))?;
            self.sort("sample", vec![name(ORDER)])?;
            self.change("sample", |frame| frame.select(all.iter().map(|column| name(column)).collect::<Vec<_>>()))?;
        }
        self.tally("sample")
    }

    pub(crate) fn shuffle(&mut self, shuffle: &Shuffle) -> Result<()> {
        // Equal keys are pieces of one row, or one row that comes twice.
        let mut order = vec![shuffle_key(shuffle).call(vec![name(ROW)]), name(ROW)];
        if self.schema().column_with_name(OFFSET).is_some() {
            order.push(name(OFFSET));
        }
        self.sort("shuffle", order)
    }

    /// Sorts the rows for the steps that follow, whatever order they may be brought into later.
    fn sort(&mut self, step: &str, order: Vec<Expr>) -> Result<()> {
        let order = order.into_iter().map(|key| key.sort(true, false)).collect();
        self.hold()?;
        self.change(step, |frame| frame.sort(order))?;
        self.hold()
    }

    fn hold(&mut self) -> Result<()> {
        self.add(HoldStage { input: self.schema(), held: OnceLock::new() })
    }

    pub(crate) fn normalize(&mut self, normalize: &Normalize) -> Result<()> {
        let schema = self.schema();
        for column in &normalize.columns {
            self.require_text("normalize", &schema, column)?;
            let normalized = normalize.function().call(vec![name(column)]).alias(column);
            let all = self.all_columns().into_iter();
            let expressions: Vec<Expr> =
                all.map(|other| if other == *column { normalized.clone() } else { name(&other) }).collect();
            self.change("normalize", |frame| frame.select(expressions))?;
        }
        Ok(())
    }

    pub(crate) fn quality(&mut self, quality: &Quality) -> Result<()> {
        let input = self.schema();
        self.require_text("quality", &input, &quality.column)?;
        let counter = self.ledger.open(&self.label("quality"));
        self.add(QualityStage {
            step: quality.clone(),
            input,
            rows: Arc::clone(&self.rows),
            counter: Arc::clone(&counter),
            threads: self.resources.threads,
        })?;
        self.count("quality", counter)
    }

    pub(crate) fn dedup(&mut self, dedup: &Dedup) -> Result<()> {
        match &dedup.near {
            Some(near) => self.near_dedup(near),
            None => {
                let (on, _) = self.compared("dedup", &dedup.on)?;
                self.add(ExactDedupStage { on, input: self.schema(), threads: self.resources.threads })?;
                self.tally("dedup")
            }
        }
    }

    fn near_dedup(&mut self, near: &NearDedup) -> Result<()> {
        let input = self.schema();
        self.require_text("dedup.near", &input, &near.column)?;
        let counter = self.ledger.open(&self.label("dedup"));
        self.add(NearDedupStage {
            step: near.clone(),
            input,
            rows: Arc::clone(&self.rows),
            counter: Arc::clone(&counter),
            threads: self.resources.threads,
        })?;
        self.count("dedup", counter)
    }

    pub(crate) fn decontaminate(&mut self, step: &Decontaminate) -> Result<()> {
        let input = self.schema();
        step.columns.iter().try_for_each(|column| self.require_text("decontaminate", &input, column))?;
        if step.action == Found::Report && input.column_with_name(CONTAMINATION).is_some() {
            return Err(DataError::Sql {
                step: "decontaminate".to_owned(),
                message: format!("there is a column `{CONTAMINATION}` already"),
            });
        }
        let against = self.evaluation_sets(step)?;
        let counter = self.ledger.open(&self.label("decontaminate"));
        self.add(DecontaminateStage {
            step: step.clone(),
            against,
            input,
            rows: Arc::clone(&self.rows),
            counter: Arc::clone(&counter),
            threads: self.resources.threads,
        })?;
        self.count("decontaminate", counter)
    }

    /// The texts of the evaluation sets, whose files count among those that the pipeline reads.
    fn evaluation_sets(&mut self, step: &Decontaminate) -> Result<DataFrame> {
        let sources = step.against.iter().map(Source::new).collect();
        let reads = Pipeline {
            source: sources,
            base: self.pipeline.base.clone(),
            remote: self.pipeline.remote.clone(),
            ..Pipeline::new()
        };
        let (state, _) = self.frame.clone().into_parts();
        let context = SessionContext::new_with_state(state.clone());
        let sources = Arc::new(source::open(&reads, &context, self.resources.threads)?);
        let schema = Arc::clone(&sources.schema);
        step.fields.iter().try_for_each(|field| require("decontaminate.fields", &schema, field))?;
        let wanted = schema.fields().iter().filter(|field| match step.fields.as_slice() {
            [] => holds_text(field.data_type()),
            fields => fields.contains(field.name()),
        });
        let wanted: Vec<Expr> = wanted.map(|field| name(field.name())).collect();
        if wanted.is_empty() {
            let message = "the evaluation sets have no column of text".to_owned();
            return Err(DataError::Sql { step: "decontaminate".to_owned(), message });
        }
        self.reference_files.extend(sources.files().cloned());
        let table: Arc<dyn TableProvider> = Arc::new(SourcesTable::new(sources, Arc::default()));
        let scan = LogicalPlanBuilder::scan("evaluation sets", provider_as_source(table), None);
        let scan = scan.and_then(LogicalPlanBuilder::build).map_err(planning("decontaminate"))?;
        DataFrame::new(state, scan).select(wanted).map_err(planning("decontaminate"))
    }

    pub(crate) fn cut(&mut self, cut: Cut) -> Result<()> {
        self.add(CutStage {
            cut,
            input: self.schema(),
            rows: Arc::clone(&self.rows),
            account: Arc::clone(&self.account),
            threads: self.resources.threads,
        })
    }

    /// Counts the rows that a step leaves. Behind `tokenize` the account of tokens says what happened.
    pub(crate) fn tally(&mut self, step: &str) -> Result<()> {
        if self.is_numbered() || self.schema().column_with_name(INPUT_IDS).is_some() {
            return Ok(());
        }
        let counter = self.ledger.open(&self.label(step));
        self.count(step, counter)
    }

    fn count(&mut self, step: &str, counter: Arc<StepCounter>) -> Result<()> {
        self.add(tally(self.label(step), self.schema(), counter))
    }

    /// The step as overrides name it.
    fn label(&self, step: &str) -> String {
        format!("step.{}.{step}", self.at)
    }

    /// The columns that are compared, with their types: those named, or all but ours.
    fn compared(
        &self,
        step: &str,
        on: &[String],
    ) -> Result<(Vec<String>, Vec<datafusion::arrow::datatypes::DataType>)> {
        let schema = self.schema();
        on.iter().try_for_each(|column| require(step, &schema, column))?;
        let fields = schema.fields().iter().filter(|field| match on {
            [] => !field.name().starts_with("__"),
            on => on.contains(field.name()),
        });
        Ok(fields.map(|field| (field.name().clone(), field.data_type().clone())).unzip())
    }

    pub(crate) fn require_text(&self, step: &str, schema: &Schema, column: &str) -> Result<()> {
        use datafusion::arrow::datatypes::DataType;
        require(step, schema, column)?;
        let found = schema.field_with_name(column).map(|field| field.data_type().clone());
        match found {
            Ok(DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Null) | Err(_) => Ok(()),
            Ok(other) => Err(DataError::Sql {
                step: step.to_owned(),
                message: format!("the column `{column}` is {other}, and has to be text"),
            }),
        }
    }
}
