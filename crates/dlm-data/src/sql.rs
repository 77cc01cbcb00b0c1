//! The `sql` step: a query over the rows so far.

use crate::{
    error::{DataError, Result},
    plan::{ROW, planning},
};
use datafusion::{
    common::tree_node::TreeNodeRecursion,
    dataframe::DataFrame,
    error::DataFusionError,
    execution::SessionState,
    logical_expr::{Expr, LogicalPlan, Volatility},
    prelude::{SQLOptions, SessionContext},
    sql::{
        parser::Statement as ParsedStatement,
        sqlparser::ast::{
            Expr as SqlExpr, GroupByExpr, Ident, Query, Select, SelectItem, SetExpr, Statement, TableFactor,
        },
    },
};
use futures::FutureExt;

/// The name of the rows so far in a query.
const ROWS: &str = "rows";

/// The rows that a query makes.
pub(crate) struct Answer {
    pub(crate) frame: DataFrame,
    /// Whether every row is one of the rows before and still has its number.
    pub(crate) keeps_rows: bool,
    /// Whether the rows before are read exactly once, and to their end.
    pub(crate) reads_all_once: bool,
}

/// Plans a query over the rows of `frame`, which it calls `rows`.
///
/// A query that picks, changes and orders rows keeps their numbers, so that errors behind it still name file and row. One
/// that groups, joins or unnests makes new rows.
pub(crate) fn query(frame: &DataFrame, query: &str) -> Result<Answer> {
    let step = format!("sql `{query}`");
    let (state, rows) = frame.clone().into_parts();
    let unnests = count(&rows, is_unnest).map_err(planning(&step))?;
    let context = SessionContext::new_with_state(state);
    context.register_table(ROWS, frame.clone().into_view()).map_err(planning(&step))?;
    let state = context.state();

    let parsed = parse(&state, query).map_err(planning(&step))?;
    let ParsedStatement::Statement(statement) = parsed else {
        return Err(DataError::Sql { step, message: "a query begins with `select` or `with`".to_owned() });
    };
    let Statement::Query(parsed) = *statement else {
        return Err(DataError::Sql { step, message: "a query begins with `select` or `with`".to_owned() });
    };
    if query.contains("__") && parsed.to_string().contains(ROW) {
        return Err(DataError::Sql { step, message: format!("the name `{ROW}` is taken: choose another one") });
    }
    let is_ordered = parsed.order_by.is_some();
    // A query to which the number can be added is one of rows; with `count(*)` in it, the addition is refused.
    let numbered = with_row_number(&parsed).map(|numbered| plan(&state, numbered));
    let (plan, keeps_rows) = match numbered {
        Some(Ok(plan)) if count(&plan, is_unnest).map_err(planning(&step))? == unnests => (plan, true),
        _ => (self::plan(&state, *parsed).map_err(planning(&step))?, false),
    };
    refuse_volatile_plan(&step, &plan)?;
    // Some joins are seen only in what is made of a query, such as that of `in (select ...)`.
    let optimized = |plan: &LogicalPlan| state.optimize(plan).map_err(planning(&step));
    let (made, made_before) = (optimized(&plan)?, optimized(&rows)?);
    let has_more = |is, plan: &LogicalPlan, before: &LogicalPlan| -> Result<bool> {
        Ok(count(plan, is).map_err(planning(&step))? > count(before, is).map_err(planning(&step))?)
    };
    if !is_ordered && (has_more(regroups, &plan, &rows)? || has_more(regroups, &made, &made_before)?) {
        let message = "a query that groups, joins or unites rows, or looks for them in another one (`in (select ...)`, \
                       `exists`), gives them in no certain order: it needs an `order by`";
        return Err(DataError::Sql { step, message: message.to_owned() });
    }
    let reads_all_once = !has_more(is_limit, &plan, &rows)? && !has_more(is_scan, &made, &made_before)?;
    Ok(Answer { frame: DataFrame::new(state, plan), keeps_rows, reads_all_once })
}

fn parse(state: &SessionState, query: &str) -> datafusion::error::Result<ParsedStatement> {
    state.sql_to_statement(query, &state.config_options().sql_parser.dialect)
}

fn plan(state: &SessionState, query: Query) -> datafusion::error::Result<LogicalPlan> {
    let statement = ParsedStatement::Statement(Box::new(Statement::Query(Box::new(query))));
    // Tables in memory are found at once.
    let planned = state.statement_to_plan(statement).now_or_never();
    let plan = planned.ok_or_else(|| DataFusionError::Internal("a table in memory kept waiting".to_owned()))??;
    SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false).verify_plan(&plan)?;
    Ok(plan)
}

/// The query with the rows' number among its columns, if it is one of rows.
fn with_row_number(query: &Query) -> Option<Query> {
    let mut query = query.clone();
    let SetExpr::Select(select) = query.body.as_mut() else { return None };
    if !is_of_rows(select) {
        return None;
    }
    let is_wildcard = |item: &SelectItem| matches!(item, SelectItem::Wildcard(_) | SelectItem::QualifiedWildcard(..));
    if !select.projection.iter().any(is_wildcard) {
        let number = SqlExpr::Identifier(Ident::with_quote('"', ROW));
        select.projection.insert(0, SelectItem::UnnamedExpr(number));
    }
    Some(query)
}

/// Whether a query looks at one table, `rows`, and makes at most one row of each.
fn is_of_rows(select: &Select) -> bool {
    let is_rows = |factor: &TableFactor| match factor {
        TableFactor::Table { name, args: None, .. } => name.to_string().trim_matches('"') == ROWS,
        _ => false,
    };
    let groups = match &select.group_by {
        GroupByExpr::All(_) => true,
        GroupByExpr::Expressions(expressions, modifiers) => !expressions.is_empty() || !modifiers.is_empty(),
    };
    let [table] = select.from.as_slice() else { return false };
    let is_plain = !groups && select.distinct.is_none() && select.having.is_none() && select.lateral_views.is_empty();
    is_plain && table.joins.is_empty() && is_rows(&table.relation)
}

fn is_unnest(node: &LogicalPlan) -> bool {
    matches!(node, LogicalPlan::Unnest(_))
}

fn is_limit(node: &LogicalPlan) -> bool {
    matches!(node, LogicalPlan::Limit(_))
}

fn is_scan(node: &LogicalPlan) -> bool {
    matches!(node, LogicalPlan::TableScan(_))
}

/// Whether a node mixes rows: groups, but not all of them into one, joins, unions, `distinct`.
fn regroups(node: &LogicalPlan) -> bool {
    match node {
        LogicalPlan::Aggregate(aggregate) => !aggregate.group_expr.is_empty(),
        LogicalPlan::Join(_) | LogicalPlan::Union(_) | LogicalPlan::Distinct(_) => true,
        _ => false,
    }
}

fn count(plan: &LogicalPlan, is: fn(&LogicalPlan) -> bool) -> datafusion::error::Result<usize> {
    let mut found = 0;
    plan.apply_with_subqueries(|node| {
        found += usize::from(is(node));
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(found)
}

/// Refuses what an expression over single rows cannot do: look at several rows, or give something else each time.
pub(crate) fn refuse_unfit(step: &str, expression: &Expr) -> Result<()> {
    use datafusion::common::tree_node::TreeNode;
    let mut found = None;
    expression
        .apply(|part| {
            found = match part {
                Expr::AggregateFunction(function) => Some(function.func.name().to_owned()),
                Expr::WindowFunction(function) => Some(function.fun.name().to_owned()),
                _ => return Ok(TreeNodeRecursion::Continue),
            };
            Ok(TreeNodeRecursion::Stop)
        })
        .map_err(planning(step))?;
    if let Some(name) = found {
        return Err(DataError::Sql {
            step: step.to_owned(),
            message: format!(
                "`{name}` looks at several rows, and an expression here sees one at a time: the step `sql` takes whole queries, as in \
                 `sql = \"select *, {name}(...) over () as x from rows\"`"
            ),
        });
    }
    refuse_volatile(step, expression)
}

/// Refuses functions that give something else each time: the same pipeline over the same input gives the same bytes.
fn refuse_volatile(step: &str, expression: &Expr) -> Result<()> {
    use datafusion::common::tree_node::TreeNode;
    let mut found = None;
    expression
        .apply(|part| {
            if let Expr::ScalarFunction(function) = part {
                let name = function.func.name();
                let is_clock = ["now", "current_date", "current_time", "current_timestamp", "today"].contains(&name);
                if is_clock || function.func.signature().volatility == Volatility::Volatile {
                    found = Some(name.to_owned());
                    return Ok(TreeNodeRecursion::Stop);
                }
            }
            Ok(TreeNodeRecursion::Continue)
        })
        .map_err(planning(step))?;
    match found {
        None => Ok(()),
        Some(name) => Err(DataError::Sql {
            step: step.to_owned(),
            message: format!(
                "`{name}()` gives something else each time, and a pipeline gives the same for the same input; \
                 the steps `sample` and `shuffle` choose by a seed"
            ),
        }),
    }
}

fn refuse_volatile_plan(step: &str, plan: &LogicalPlan) -> Result<()> {
    let mut result = Ok(());
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expression| {
            if result.is_ok() {
                result = refuse_volatile(step, expression);
            }
            Ok(TreeNodeRecursion::Continue)
        })
    })
    .map_err(planning(step))?;
    result
}
