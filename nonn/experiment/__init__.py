"""Runs an experiment file stage by stage, and keeps finished stages.

::

    run         design → teacher → partition → students → bundle → placement → report
    workspace   state that all stages share
    stages      folders of stages, keyed by hashes of their inputs
    keys        the configuration in these keys
    seeds       a separate random stream for every purpose
    progress    the interface for reporting
    precheck    errors that are found before the data are read
    contract    the input contract of the teacher
    search      student.model = "search:wrn-DEPTH": chooses the width of each stage
    pilot       partition.parts = "auto": chooses the design by short runs
    teachers    stages of the teacher, its assistants and their stored answers
    training    teacher → teacher assistants → partition → students
    losses      mean losses of the epochs, as CSV and for TensorBoard
    networks    the untrained networks
    weights     files of trained networks
    bundling    builds the bundle from students and heads
    verdict     accuracy of the students next to their teacher's, and where they fall short
    placement   chooses which device runs which student
    comparison  every partitioner on the same filters
    study       published methods and ours at equal budget
    methods     their changes to the experiment
    rows        one method, seed and fold: trained and evaluated
    rival       a method with a fusion that nonn does not serve
    rivals/     these methods
    evaluation  a head on every subset of surviving devices
    paired      intervals over samples, paired between rows
    summary     the result document of a study
    cluster     rows on a Ray cluster
    kept        earlier bundles, and what a folder of runs holds
    demo        a run, then kills its devices one by one
"""

__all__: list[str] = []
