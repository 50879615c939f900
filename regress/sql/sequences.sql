--
-- Sequences by name: pgq.seq_getval, pgq.seq_setval, pgq.quote_fqname.
--
set client_min_messages = warning;
\set SHOW_CONTEXT never
\pset null (null)
select n as name, pgq.quote_fqname(n) as quoted
  from (values ('plain'), ('schema.plain'), ('Upper'), ('Schema.Upper'), ('two words.x'), ('a.b.c'), ('select.from'), ('quo"te.x'),
               (''), ('.x'), ('x.'), ('.'), ('prüfung.naïve'), ('a,b'), (null)) v (n);

create sequence sequences_s;
create schema "Sequences X";
create sequence "Sequences X"."s.s";
-- What there is, without drawing.
select pgq.seq_getval('sequences_s'), pgq.seq_getval('public.sequences_s'), pgq.seq_getval('Sequences X.s.s'), pgq.seq_getval(null);
select nextval('sequences_s');
select pgq.seq_getval('sequences_s');
-- Forward, a little and far; never back.
select pgq.seq_setval('sequences_s', 1), pgq.seq_setval('sequences_s', 10), pgq.seq_setval('sequences_s', 5), pgq.seq_setval('sequences_s', 10), pgq.seq_setval('sequences_s', -1);
select nextval('sequences_s');
select pgq.seq_setval('sequences_s', 1000000), pgq.seq_setval('sequences_s', 1000001);
select nextval('sequences_s');
select pgq.seq_setval('sequences_s', null), pgq.seq_setval(null, 1);
-- A new one stands at 1 without having given it out.
select pgq.seq_setval('Sequences X.s.s', 1), nextval('"Sequences X"."s.s"');
-- Steps other than one.
create sequence sequences_five increment by 5;
select nextval('sequences_five'), nextval('sequences_five');
select pgq.seq_setval('sequences_five', 8), nextval('sequences_five');
-- No such sequence.
\set VERBOSITY terse
select pgq.seq_getval('no_such_sequence');
select pgq.seq_getval('no_such_schema.s');
select pgq.seq_setval('no_such_sequence', 1);
select pgq.seq_setval('pgq.queue', 1);
\set VERBOSITY default
-- Everybody may look at the sequences of a queue; nobody else may move them.
select pgq.create_queue('sequences');
select queue_event_seq as seq from pgq.queue where queue_name = 'sequences' \gset
create role sequences_nobody;
grant create, usage on schema "Sequences X" to sequences_nobody;
set role sequences_nobody;
select pgq.seq_getval(:'seq');
\set VERBOSITY sqlstate
select pgq.seq_setval(:'seq', 100);
select nextval(:'seq');
\set VERBOSITY default
reset role;
drop schema "Sequences X" cascade;
drop role sequences_nobody;
drop sequence sequences_s, sequences_five;
select pgq.drop_queue('sequences');
