{#- Money is decimal from end to end: no column of a table or view, nor a part of one, that holds an
    amount, a price, a cost, a limit, a share or what was saved is a float. -#}
-- depends_on: {{ ref('llm_budgets') }}
-- depends_on: {{ ref('provider_bill_reconciliation') }}
select
    table,
    name,
    type
from system.columns
where
    database = currentDatabase()
    and match(type, 'Float')
    and match(name, 'usd|cost|price|rate|amount|charge|limit|share|saved|margin')
