-- The settings, and that docs/settings.md says of them what the server says.
\set SHOW_CONTEXT never
load 'pgcascade';
select name, boot_val, unit, context, vartype, min_val, max_val
  from pg_settings where name like 'pgcascade.%' order by name;

-- Wrong values name the setting and the range (the texts differ between versions of PostgreSQL).
\set VERBOSITY sqlstate
set pgcascade.tick_interval = 0;
set pgcascade.tick_interval = '2min';
\set VERBOSITY default
set pgcascade.fixed_output = 'perhaps';
-- An unknown setting under the prefix is refused.
set pgcascade.no_such_setting = 1;


-- pgcascade.setting() gives a value as SHOW does, for settings of this extension only. That it does not believe what an
-- ordinary session set before the library was loaded is tested where that is not preloaded: consumer/tests/security.rs.
set pgcascade.consumer_ownership = off;
select pgcascade.setting('pgcascade.consumer_ownership'), pgcascade.setting('pgcascade.tick_interval'),
       pgcascade.setting('pgcascade.maint_interval');
reset pgcascade.consumer_ownership;
select pgcascade.setting('pgcascade.consumer_ownership');
select pgcascade.setting('pgcascade.no_such_setting');
select pgcascade.setting('work_mem');
select pgcascade.setting('');
select pgcascade.setting(null);
create role settings_nobody in role pgq_reader;
set role settings_nobody;
set pgcascade.consumer_ownership = off;
select pgcascade.setting('pgcascade.consumer_ownership');
reset role;
drop role settings_nobody;

\getenv abs_srcdir PG_ABS_SRCDIR
\set manual :abs_srcdir '/docs/settings.md'
create temp table manual (line text);
\set load '\\copy manual from ' :'manual' ' with (format csv, delimiter E''\\x01'', quote E''\\x02'')'
:load
-- Settings that the manual describes wrongly or not at all; none.
select format('| `%s` | %s | %s | %s | %s |', name, boot_val, coalesce(unit, ''), context, short_desc)
  from pg_settings where name like 'pgcascade.%'
except
select line from manual;
-- Settings that only the manual has; none.
select substring(line from '`(pgcascade\.[a-z_]+)` \|') from manual where line like '| `pgcascade.%'
except
select name from pg_settings;
