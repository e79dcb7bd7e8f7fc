{#- Each value is of the form that a regular expression describes. -#}
{% test matches_pattern(model, column_name, pattern) %}
select {{ column_name }}
from {{ model }}
where not match({{ column_name }}, {{ sql_text(pattern) }})
{% endtest %}
