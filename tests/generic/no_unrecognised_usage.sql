{#- A relation is empty. Each row is a shape of usage that nobody reads yet. -#}
{% test no_unrecognised_usage(model) %}
select * from {{ model }}
{% endtest %}
